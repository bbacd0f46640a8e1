//! Connections that a listener has accepted before somebody asks for them.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use duopoll_core::{Group, Limits, Token, contain};

use crate::connection::Connection;
use crate::poller::{Acceptor, Coming, Handle, Poller, over};
use crate::pollers::Pollers;

/// So many, at most; then the kernel's backlog fills.
const AHEAD_MAX: usize = 128;

/// The connections, and where they come from. Each is registered at its poller, which receives nothing of it before somebody
/// takes it: so it can be given to another poller as if it had just been accepted.
pub(super) struct Ahead {
    /// Kept so that they run.
    pollers: Pollers,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ready: VecDeque<io::Result<Connection>>,
    /// Those that are on their way to their pollers.
    opening: usize,
    /// Who waits, by the number of the wait.
    waiting: BTreeMap<u64, Waker>,
    waits: u64,
    /// Who listens.
    source: Option<(Arc<Handle>, Token)>,
    paused: bool,
    /// Nothing more comes.
    ended: bool,
    /// Nobody wants more, and this is to be dropped when the listener is gone.
    stopped: bool,
    done: Option<Done>,
    /// The kernel holds nothing of the listener any more.
    over: bool,
    /// To whom connections are given instead.
    heir: Option<Arc<Heir>>,
}

type Heir = dyn Fn(OwnedFd) + Send + Sync;
type Done = Box<dyn Any + Send>;

/// A connection on its way to its poller.
struct Opening(Arc<Ahead>);

/// Dropped when the kernel holds nothing of the listener any more.
struct Over {
    ahead: Arc<Ahead>,
    _done: Done,
}

/// A wait for the next connection.
pub(super) struct Take<'a> {
    ahead: &'a Ahead,
    wait: Option<u64>,
}

impl Ahead {
    /// Begins to accept, on one of the pollers.
    pub(super) fn begin(
        socket: OwnedFd,
        pollers: Pollers,
        limits: Limits,
    ) -> io::Result<Arc<Ahead>> {
        let handle = pollers.running().ok_or_else(over)?;
        pollers.check(&limits)?;
        let ahead = Arc::new(Ahead { pollers, limits, state: Mutex::default() });
        let (begun, mut beginning) = (ahead.clone(), Beginning(Some(ahead.clone())));
        handle.call(move |poller| match poller.listen(socket, Group::default(), begun.clone()) {
            Ok(_) => drop(beginning.0.take()),
            Err(error) => begun.put(Err(error)),
        });
        Ok(ahead)
    }

    /// The next connection; none if there will be none, and another poller may be asked.
    pub(super) fn take(&self) -> Take<'_> {
        Take { ahead: self, wait: None }
    }

    /// Gives what was accepted, and what may still come, to somebody else.
    pub(super) fn hand_over(self: &Arc<Self>, heir: Arc<Heir>, done: Done) {
        let ready = {
            let mut state = self.state();
            state.heir = Some(heir.clone());
            mem::take(&mut state.ready)
        };
        let done = Box::new(Over { ahead: self.clone(), _done: done });
        self.stop(done);
        for connection in ready.into_iter().flatten() {
            self.give(connection, &heir);
        }
    }

    /// Takes a connection away from its poller, and gives it to somebody else.
    fn give(&self, connection: Connection, heir: &Arc<Heir>) {
        // They stay until the heir has it.
        let (heir, pollers) = (heir.clone(), self.pollers.clone());
        self.pollers.choose().call(move |poller| {
            poller.spawn(async move {
                match connection.detach().await {
                    Ok((socket, _)) => heir(socket),
                    Err(error) => {
                        log::debug!("a connection was gone before it was served: {error}")
                    }
                }
                drop((heir, pollers));
            });
        });
    }

    /// Takes an accepted connection on.
    fn open(&self, poller: &mut Poller, socket: OwnedFd) {
        match poller.open_paused(socket, self.limits, Group::default()) {
            Ok(connection) => self.put(Ok(connection)),
            Err(error) => self.put(Err(error)),
        }
    }

    /// Keeps a connection until somebody takes it.
    fn put(&self, opened: io::Result<Connection>) {
        let mut state = self.state();
        if let (Some(heir), Ok(_)) = (&state.heir, &opened) {
            let heir = heir.clone();
            drop(state);
            return opened.into_iter().for_each(|connection| self.give(connection, &heir));
        }
        state.ready.push_back(opened);
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
    }

    fn end(&self) {
        let (waiting, done) = {
            let mut state = self.state();
            state.ended = true;
            state.source = None;
            (mem::take(&mut state.waiting), state.done.take())
        };
        drop(done);
        wake_all(waiting);
    }

    /// Whether nothing more comes from this one.
    pub(super) fn has_ended(&self) -> bool {
        let state = self.state();
        state.ended && state.ready.is_empty()
    }

    /// Stops accepting. `done` is dropped when the kernel holds nothing of the listener any more.
    pub(super) fn stop(&self, done: Done) {
        let mut state = self.state();
        state.stopped = true;
        match state.source.take() {
            Some((handle, token)) => {
                drop(state);
                handle.call(move |poller| poller.stop_listening(token, Some(done)));
            }
            // It does not listen yet.
            None if !state.ended => state.done = Some(done),
            None => {}
        }
    }

    /// Accepts again, if that was put off and there is room.
    fn resume_if_there_is_room(&self, mut state: MutexGuard<'_, State>) {
        let has_room = state.ready.len() + state.opening <= AHEAD_MAX / 2;
        let resumes = has_room && mem::take(&mut state.paused);
        let source = resumes.then(|| state.source.clone()).flatten();
        drop(state);
        if let Some((handle, token)) = source {
            handle.call(move |poller| poller.resume_listener(token));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.ready.len() + self.opening >= AHEAD_MAX
    }

    /// The heir, when nobody comes any more: he may be waited for, and a future of `accept` that somebody has leaked would
    /// keep him for ever.
    fn let_heir_go(&mut self) -> Option<Arc<Heir>> {
        if self.over && self.opening == 0 { self.heir.take() } else { None }
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        let mut state = self.ahead.state();
        state.over = true;
        let heir = state.let_heir_go();
        drop(state);
        drop(heir);
    }
}

impl Acceptor for Ahead {
    fn accepted(self: Arc<Self>, poller: &mut Poller, listener: Token, socket: OwnedFd) {
        let mut state = self.state();
        if let Some(heir) = state.heir.clone() {
            drop(state);
            return heir(socket);
        }
        state.opening += 1;
        // One that was on its way may still come when the listener is paused.
        let pause = state.is_full();
        state.paused |= pause;
        drop(state);
        if pause {
            poller.pause_listener(listener);
        }
        let opening = Opening(self.clone());
        let next = self.pollers.choose();
        if Arc::ptr_eq(&next, poller.handle()) {
            opening.0.open(poller, socket);
        } else {
            let coming = Coming::to(&next);
            next.call(move |poller| {
                poller.arrived(coming);
                opening.0.open(poller, socket);
            });
        }
    }

    fn listens(&self, poller: &Arc<Handle>, listener: Token) {
        let mut state = self.state();
        if !state.stopped {
            state.source = Some((poller.clone(), listener));
            return;
        }
        let done = state.done.take();
        drop(state);
        poller.call(move |poller| poller.stop_listening(listener, done));
    }

    fn successor(&self) -> Option<Arc<Handle>> {
        self.pollers.running()
    }

    fn ended(&self) {
        self.end();
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.opening -= 1;
        let heir = state.let_heir_go();
        self.0.resume_if_there_is_room(state);
        drop(heir);
    }
}

/// A listener on its way to its first poller; dropped, if it does not listen there.
struct Beginning(Option<Arc<Ahead>>);

impl Drop for Beginning {
    fn drop(&mut self) {
        if let Some(ahead) = self.0.take() {
            ahead.end();
        }
    }
}

impl Future for Take<'_> {
    type Output = Option<io::Result<Connection>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Cloned and dropped without the lock: it is a user's.
        let waker = cx.waker().clone();
        let mut state = self.ahead.state();
        let taken = state.ready.pop_front();
        let Some(taken) = taken else {
            if state.ended {
                return Poll::Ready(None);
            }
            let wait = self.wait.unwrap_or_else(|| {
                state.waits += 1;
                state.waits
            });
            let before = state.waiting.insert(wait, waker);
            drop(state);
            drop(before);
            self.wait = Some(wait);
            return Poll::Pending;
        };
        self.ahead.resume_if_there_is_room(state);
        if let Ok(connection) = &taken {
            connection.resume();
        }
        Poll::Ready(Some(taken))
    }
}

impl Drop for Take<'_> {
    fn drop(&mut self) {
        if let Some(wait) = self.wait {
            let waker = self.ahead.state().waiting.remove(&wait);
            drop(waker);
        }
    }
}

/// Each is told, whatever another one's waker does.
fn wake_all(waiting: BTreeMap<u64, Waker>) {
    for waker in waiting.into_values() {
        contain("a waker", || waker.wake());
    }
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Ahead")
            .field("ready", &state.ready.len())
            .field("opening", &state.opening)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}
