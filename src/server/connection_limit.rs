//! How many connections a server has open at once, and on which poller each lives.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duopoll_core::Token;

use crate::poller::shutdown::Outstanding;
use crate::poller::{Acceptor, Handle, Poller};
use crate::pollers::Pollers;

/// Takes a connection on.
type Start = dyn Fn(&mut Poller, OwnedFd, Permit) + Send + Sync;

/// On which poller a connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// On the one that the group's policy chooses.
    Balanced,
    /// On the one that has accepted it.
    WhereAccepted,
}

/// Gives accepted connections to the pollers, no more than so many at once.
pub(crate) struct ConnectionLimit {
    pollers: Pollers,
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
pub(crate) struct Permit(Option<Arc<ConnectionLimit>>);

impl ConnectionLimit {
    pub(crate) fn new(
        pollers: Pollers,
        max: Option<usize>,
        start: impl Fn(&mut Poller, OwnedFd, Permit) + Send + Sync + 'static,
    ) -> Arc<ConnectionLimit> {
        let max = max.unwrap_or(usize::MAX);
        Arc::new(ConnectionLimit { pollers, max, start: Box::new(start), state: Mutex::default() })
    }

    /// What becomes of the connections that a listener accepts.
    pub(crate) fn acceptor(self: Arc<Self>, placement: Placement) -> Acceptor {
        Arc::new(move |poller, listener, socket| {
            if self.max == usize::MAX {
                return self.begin(Some((poller, placement)), socket, Permit(None));
            }
            let mut state = self.state();
            if state.open < self.max {
                state.open += 1;
                drop(state);
                return self.begin(Some((poller, placement)), socket, Permit(Some(self.clone())));
            }
            state.waiting.push_back(socket);
            state.paused.push((poller.handle().clone(), listener));
            drop(state);
            poller.pause_listener(listener);
        })
    }

    /// Starts a connection, on the poller that we are on or on another.
    fn begin(
        self: &Arc<Self>,
        here: Option<(&mut Poller, Placement)>,
        socket: OwnedFd,
        permit: Permit,
    ) {
        let (next, here) = match here {
            Some((poller, Placement::WhereAccepted)) => {
                return (self.start)(poller, socket, permit);
            }
            Some((poller, Placement::Balanced)) => (self.pollers.pick(), Some(poller)),
            None => (self.pollers.pick(), None),
        };
        match here {
            Some(poller) if Arc::ptr_eq(&next, poller.handle()) => {
                (self.start)(poller, socket, permit);
            }
            _ => {
                let limit = self.clone();
                // If that poller has ended, the socket is closed with the call.
                next.call(move |poller| (limit.start)(poller, socket, permit));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outstanding for ConnectionLimit {
    fn is_empty(&self) -> bool {
        self.max == usize::MAX || self.state().open == 0
    }

    fn give_up(&self) -> usize {
        let waiting = mem::take(&mut self.state().waiting);
        waiting.len()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(limit) = self.0.take() else { return };
        let mut state = limit.state();
        match state.waiting.pop_front() {
            // The place goes on to the one who has waited longest.
            Some(socket) => {
                drop(state);
                let permit = Permit(Some(limit.clone()));
                limit.begin(None, socket, permit);
            }
            None => {
                state.open -= 1;
                let paused = mem::take(&mut state.paused);
                let empty = state.open == 0;
                drop(state);
                for (handle, listener) in paused {
                    handle.call(move |poller| poller.resume_listener(listener));
                }
                if empty {
                    // A poller may wait for this, to end.
                    limit.pollers.handles().iter().for_each(|handle| handle.wake());
                }
            }
        }
    }
}

impl fmt::Debug for ConnectionLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionLimit").field("max", &self.max).finish_non_exhaustive()
    }
}
