//! Which accepted connections are served, and on which poller.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duopoll_core::Token;

use crate::poller::{Acceptor, Handle, Poller};
use crate::pollers::Pollers;

/// Takes a connection on.
type Start = dyn Fn(&mut Poller, OwnedFd, Admitted) + Send + Sync;

/// On which poller a connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// On the one that the group's policy chooses.
    ByBalance,
    /// On the one that has accepted it.
    Stay,
}

/// Gives accepted connections to the pollers, no more than so many at once.
pub(crate) struct Admission {
    pollers: Pollers,
    spread: Spread,
    max: usize,
    start: Box<Start>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: usize,
    /// Accepted before the listener had stopped.
    waiting: VecDeque<OwnedFd>,
    /// The listeners that are paused, and their pollers.
    paused: Vec<(Arc<Handle>, Token)>,
}

/// A connection's place among those that are open, given back when dropped.
pub(crate) struct Admitted(Option<Arc<Admission>>);

impl Admission {
    pub(crate) fn new(
        pollers: Pollers,
        spread: Spread,
        max: Option<usize>,
        start: impl Fn(&mut Poller, OwnedFd, Admitted) + Send + Sync + 'static,
    ) -> Arc<Admission> {
        let max = max.unwrap_or(usize::MAX);
        Arc::new(Admission {
            pollers,
            spread,
            max,
            start: Box::new(start),
            state: Mutex::default(),
        })
    }

    /// What becomes of the connections that a listener accepts.
    pub(crate) fn acceptor(self: Arc<Self>) -> Acceptor {
        Arc::new(move |poller, listener, socket| {
            if self.max == usize::MAX {
                return self.begin(Some(poller), socket, Admitted(None));
            }
            let mut state = self.state();
            if state.open < self.max {
                state.open += 1;
                drop(state);
                return self.begin(Some(poller), socket, Admitted(Some(self.clone())));
            }
            state.waiting.push_back(socket);
            state.paused.push((poller.handle().clone(), listener));
            drop(state);
            poller.pause_listener(listener);
        })
    }

    /// Starts a connection, on the poller that we are on or on another.
    fn begin(self: &Arc<Self>, here: Option<&mut Poller>, socket: OwnedFd, admitted: Admitted) {
        let next = match here {
            Some(poller) if self.spread == Spread::Stay => {
                return (self.start)(poller, socket, admitted);
            }
            here => (self.pollers.pick(), here),
        };
        match next {
            (next, Some(poller)) if Arc::ptr_eq(next, poller.handle()) => {
                (self.start)(poller, socket, admitted);
            }
            (next, _) => {
                let admission = self.clone();
                // If that poller has ended, the server is shutting down, and the socket is closed with the call.
                next.call(move |poller| (admission.start)(poller, socket, admitted));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some(admission) = self.0.take() else { return };
        let mut state = admission.state();
        match state.waiting.pop_front() {
            // The place goes on to the one who has waited longest.
            Some(socket) => {
                drop(state);
                let admitted = Admitted(Some(admission.clone()));
                admission.begin(None, socket, admitted);
            }
            None => {
                state.open -= 1;
                let paused = std::mem::take(&mut state.paused);
                drop(state);
                for (handle, listener) in paused {
                    handle.call(move |poller| poller.resume_listener(listener));
                }
            }
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("max", &self.max).finish_non_exhaustive()
    }
}
