//! QUIC, by [`quinn`](https://docs.rs/quinn) on the pollers: its sockets, timers and tasks.
//!
//! ```no_run
//! # async fn example(config: quinn::ServerConfig) -> std::io::Result<()> {
//! use duopoll::quinn::PollerRuntime;
//! use quinn::{Endpoint, EndpointConfig};
//! use std::net::UdpSocket;
//! use std::sync::Arc;
//!
//! let socket = UdpSocket::bind("0.0.0.0:4433")?;
//! // Within a task of a poller: the endpoint and all of its connections are on that one.
//! let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(PollerRuntime::here()))?;
//! while let Some(incoming) = endpoint.accept().await {
//!     duopoll::task::spawn_local(async move {
//!         let connection = incoming.await?;
//!         while let Ok((mut send, mut receive)) = connection.accept_bi().await {
//!             let request = receive.read_to_end(1 << 20).await.unwrap_or_default();
//!             let _ = send.write_all(&request).await;
//!             let _ = send.finish();
//!         }
//!         Ok::<_, quinn::ConnectionError>(())
//!     });
//! }
//! # Ok(()) }
//! ```
//!
//! The kernel cuts what is sent (`UDP_SEGMENT`) and puts together what comes (`UDP_GRO`) where it can, and tells of congestion and local
//! addresses: quinn's own `quinn-udp` sees to that. The pollers tell when a socket is ready.

mod endpoints;
mod socket;
mod steering;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use ::quinn::{AsyncTimer, AsyncUdpSocket, Runtime};

pub use self::endpoints::Endpoints;
use self::socket::Socket;
use crate::poller::Handle;
use crate::pollers::Pollers;
use crate::task;
use crate::time::{Sleep, now, sleep_until};

/// quinn's [`Runtime`] on a poller.
///
/// Endpoints and connections are to be closed before the pollers end: with them go the tasks in which quinn sees to its connections, and
/// whoever waits for one is not told.
///
/// What quinn starts from a task of a poller is on that poller: an endpoint made there, and its connections. Elsewhere it is on one of
/// the runtime's pollers.
#[derive(Clone, Debug)]
pub struct PollerRuntime(Place);

#[derive(Clone, Debug)]
enum Place {
    Here,
    Near(Pollers),
    On(Arc<Handle>),
}

impl PollerRuntime {
    /// For endpoints that are made in tasks of pollers; elsewhere they are on the pollers that the thread has [entered](Pollers::enter), or
    /// else on the [global ones](Pollers::global).
    pub fn here() -> PollerRuntime {
        PollerRuntime(Place::Here)
    }

    /// For endpoints that are made anywhere, on these pollers.
    pub fn on(pollers: Pollers) -> PollerRuntime {
        PollerRuntime(Place::Near(pollers))
    }

    fn poller(&self) -> io::Result<Arc<Handle>> {
        match (&self.0, &Handle::current()) {
            (Place::On(poller), _) | (_, Some(poller)) => Ok(poller.clone()),
            (Place::Near(pollers), None) => Ok(pollers.choose()),
            (Place::Here, None) => Ok(Pollers::nearest()?.choose()),
        }
    }
}

impl Runtime for PollerRuntime {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(sleep_until(deadline)))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        match self.poller() {
            Ok(poller) => drop(task::start(&poller, move || future)),
            // Whoever waits for it is told that it is gone.
            Err(error) => log::error!("a task of quinn's cannot be started: {error}"),
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Socket::watched(socket, self.poller()?, None)?)
    }

    fn now(&self) -> Instant {
        now()
    }
}

struct Timer(Sleep);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.0.reset(deadline);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timer").field(&self.0.deadline()).finish()
    }
}
