//! Several connections to one server, dialed when they are needed, and again when they have ended.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_lock::Mutex as AsyncMutex;
use duopoll_core::{LinkBuffer, Slice};

use crate::dialer::Dialer;
use crate::mux::client::{Client, ClientOptions};
use crate::mux::protocol::Protocol;
use crate::time::{FAR, now};

/// Between two attempts to dial after the first failure, and at most, if nothing else is said.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Calls to one server over several connections, each of which is dialed when a call needs it, and again after it has ended. Clones
/// are the same pool.
///
/// ```no_run
/// use duopoll::mux::{Plain, Pool};
/// use duopoll::{Dialer, LinkBuffer};
/// use std::time::Duration;
///
/// # async fn example() -> std::io::Result<()> {
/// let pool = Pool::new(Dialer::new().timeout(Duration::from_secs(1)), "localhost:7100", Plain)
///     .connections(4)
///     .ping(Duration::from_secs(10));
/// let reply = pool.call(&mut LinkBuffer::from(&b"hello"[..])).await?;
/// # Ok(()) }
/// ```
///
/// A call is made once: if its connection ends before the reply has come, nobody knows whether the server has seen it, and it is an
/// error.
pub struct Pool<P: Protocol>(Arc<Shared<P>>);

struct Shared<P: Protocol> {
    dialer: Dialer,
    target: String,
    protocol: P,
    backoff: (Duration, Duration),
    options: ClientOptions,
    turn: AtomicUsize,
    places: Vec<Place<P>>,
}

/// One connection, if it is there.
struct Place<P: Protocol> {
    state: Mutex<State<P>>,
    /// Held by whoever dials, so that others wait for the same.
    dialing: AsyncMutex<()>,
}

struct State<P: Protocol> {
    client: Option<Client<P>>,
    failures: u32,
    /// Until then nobody dials, and this is why.
    failed: Option<(Instant, io::ErrorKind, String)>,
}

impl<P: Protocol + Clone> Pool<P> {
    /// A pool of one connection, which nobody has dialed yet, to what a [`Dialer`] can dial.
    pub fn new(dialer: Dialer, target: impl Into<String>, protocol: P) -> Pool<P> {
        Pool(Arc::new(Shared {
            dialer,
            target: target.into(),
            protocol,
            backoff: BACKOFF,
            options: Client::<P>::options(),
            turn: AtomicUsize::new(0),
            places: vec![Place::new()],
        }))
    }

    /// How many connections, which take turns. Default: one.
    pub fn connections(self, connections: usize) -> Pool<P> {
        self.with(|shared| {
            shared.places = (0..connections.max(1)).map(|_| Place::new()).collect();
        })
    }

    /// How long nobody dials after a dial has failed, at first, and at most: it is doubled with each failure that follows.
    /// Calls fail at once meanwhile. Default: 50 milliseconds and 5 seconds.
    pub fn backoff(self, first: Duration, most: Duration) -> Pool<P> {
        self.with(|shared| shared.backoff = (first, most))
    }

    /// Has the server asked on each connection whether it is there, as by [`ClientOptions::ping`]. Default: never.
    pub fn ping(self, period: Duration) -> Pool<P> {
        self.with(|shared| shared.options = shared.options.ping(period))
    }

    /// How many calls may be under way at once on each connection, as by [`ClientOptions::calls_max`].
    pub fn calls_max(self, calls_max: usize) -> Pool<P> {
        self.with(|shared| shared.options = shared.options.calls_max(calls_max))
    }

    /// Changes what nobody else has yet, or a copy that has no connections.
    fn with(mut self, change: impl FnOnce(&mut Shared<P>)) -> Pool<P> {
        if Arc::get_mut(&mut self.0).is_none() {
            let Shared { dialer, target, protocol, backoff, options, places, .. } = &*self.0;
            self.0 = Arc::new(Shared {
                dialer: dialer.clone(),
                target: target.clone(),
                protocol: protocol.clone(),
                backoff: *backoff,
                options: *options,
                turn: AtomicUsize::new(0),
                places: places.iter().map(|_| Place::new()).collect(),
            });
        }
        if let Some(shared) = Arc::get_mut(&mut self.0) {
            change(shared);
        }
        self
    }

    /// Sends what is in `request` over the connection whose turn it is, and gives the reply.
    ///
    /// # Errors
    /// Those of the dial, and of [`Client::call`].
    ///
    /// # Cancellation
    /// As of [`Client::call`]. A dial that nobody waits for any more is given up.
    pub async fn call(&self, request: &mut LinkBuffer) -> io::Result<Slice> {
        self.client().await?.call(request).await
    }

    /// The client whose turn it is, which is dialed if need be.
    ///
    /// # Errors
    /// Those of the dial; that of the last dial, as long as it is too early for another.
    pub async fn client(&self) -> io::Result<Client<P>> {
        let shared = &*self.0;
        let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
        let place = &shared.places[turn % shared.places.len()];
        if let Some(client) = place.active() {
            return Ok(client);
        }
        let _turn = place.dialing.lock().await;
        // Somebody may have dialed meanwhile.
        if let Some(client) = place.active() {
            return Ok(client);
        }
        place.may_dial()?;
        let dialed = shared.dialer.dial(&shared.target).await;
        let start = |connection| shared.options.start(connection, shared.protocol.clone());
        match dialed.and_then(start) {
            Ok(client) => {
                place.succeeded(client.clone());
                Ok(client)
            }
            Err(error) => {
                place.failed(&error, shared.backoff);
                Err(error)
            }
        }
    }
}

impl<P: Protocol> Place<P> {
    fn new() -> Place<P> {
        let state = State { client: None, failures: 0, failed: None };
        Place { state: Mutex::new(state), dialing: AsyncMutex::new(()) }
    }

    fn active(&self) -> Option<Client<P>> {
        let mut state = self.state();
        let client = state.client.take_if(|client| !client.is_active());
        let active = state.client.clone();
        drop(state);
        drop(client);
        active
    }

    /// Whether it is not too early.
    fn may_dial(&self) -> io::Result<()> {
        match &self.state().failed {
            Some((until, kind, text)) if now() < *until => Err(io::Error::new(*kind, text.clone())),
            _ => Ok(()),
        }
    }

    fn succeeded(&self, client: Client<P>) {
        let mut state = self.state();
        (state.failures, state.failed) = (0, None);
        state.client = Some(client);
    }

    fn failed(&self, error: &io::Error, (first, most): (Duration, Duration)) {
        let mut state = self.state();
        let backoff = first.saturating_mul(1 << state.failures.min(20)).min(most).min(FAR);
        state.failures = state.failures.saturating_add(1);
        state.failed = Some((now() + backoff, error.kind(), error.to_string()));
    }

    fn state(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Protocol> Clone for Pool<P> {
    fn clone(&self) -> Pool<P> {
        Pool(self.0.clone())
    }
}

impl<P: Protocol> fmt::Debug for Pool<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("target", &self.0.target)
            .field("connections", &self.0.places.len())
            .finish_non_exhaustive()
    }
}
