//! Who is let in: how many connections a server has open at once, and on which poller each lives.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duopoll_core::{Limits, Token};

use crate::poller::shutdown::Outstanding;
use crate::poller::{Acceptor, Coming, Handle, Poller};
use crate::pollers::Pollers;
use crate::server::figures::Figures;
use crate::stats::ServerStats;
use crate::task::TaskGroup;
use crate::trace;

/// Takes a connection on.
type Start = dyn Fn(&mut Poller, OwnedFd, Limits, Permit) + Send + Sync;

/// On which poller a connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// On the one that the group's policy chooses.
    Balanced,
    /// On the one that has accepted it.
    WhereAccepted,
}

/// Gives accepted connections to the pollers, no more than so many at once.
pub(crate) struct Admission {
    pollers: Pollers,
    figures: Arc<Figures>,
    start: Box<Start>,
    state: Mutex<State>,
    /// The server's own.
    tasks: TaskGroup,
    /// Connections that were closed by force at the shutdown.
    forced: AtomicUsize,
}

struct State {
    limits: Limits,
    max: usize,
    open: usize,
    /// Accepted before the listener had stopped.
    waiting: VecDeque<OwnedFd>,
    /// On their way to another poller.
    entering: usize,
    /// Somebody is at it to let them in.
    admitting: bool,
    /// The server is shutting down, on these pollers.
    ending: Option<Vec<Arc<Handle>>>,
    /// Its grace is over: whoever comes now is closed.
    refuses: bool,
    /// The listeners that are paused, and their pollers.
    paused: Vec<(Arc<Handle>, Token)>,
}

/// A connection's place among those that are open, given back when dropped.
pub(crate) struct Permit(Arc<Admission>);

/// A connection that is on its way to another poller; dropped when it is there.
pub(crate) struct Entering(Arc<Admission>);

impl Entering {
    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.0
    }
}

/// What becomes of the connections of one listener.
pub(crate) struct Entrance {
    pub(crate) admission: Arc<Admission>,
    pub(crate) placement: Placement,
}

impl Admission {
    pub(crate) fn new(
        pollers: Pollers,
        figures: Arc<Figures>,
        limits: Limits,
        max: Option<usize>,
        tasks: TaskGroup,
        start: impl Fn(&mut Poller, OwnedFd, Limits, Permit) + Send + Sync + 'static,
    ) -> Arc<Admission> {
        let state = State {
            limits,
            max: max.unwrap_or(usize::MAX),
            open: 0,
            waiting: VecDeque::new(),
            entering: 0,
            admitting: false,
            ending: None,
            refuses: false,
            paused: Vec::new(),
        };
        Arc::new(Admission {
            pollers,
            figures,
            start: Box::new(start),
            state: Mutex::new(state),
            tasks,
            forced: AtomicUsize::new(0),
        })
    }

    /// Lets a connection in, or has it wait. `here`: the poller that it was accepted on, and by which of its listeners.
    pub(crate) fn admit(
        self: &Arc<Self>,
        here: Option<(&mut Poller, Token, Placement)>,
        socket: OwnedFd,
    ) {
        self.figures.count_accept();
        let mut state = self.state();
        if state.refuses {
            drop(state);
            self.count_forced(1);
            return;
        }
        if state.open < state.max {
            let entering = self.enter(&mut state);
            drop(state);
            let here = here.map(|(poller, _, placement)| (poller, placement));
            return self.begin(here, socket, entering);
        }
        state.waiting.push_back(socket);
        if let Some((poller, listener, _)) = &here {
            state.paused.push((poller.handle().clone(), *listener));
        }
        drop(state);
        trace::awaits_place();
        if let Some((poller, listener, _)) = here {
            poller.pause_listener(listener);
        }
    }

    /// Takes a place for somebody who is then on its way to its poller.
    fn enter(self: &Arc<Self>, state: &mut State) -> (Permit, Entering) {
        state.open += 1;
        state.entering += 1;
        (Permit(self.clone()), Entering(self.clone()))
    }

    /// Starts a connection, on the poller that we are on or on another.
    fn begin(
        self: &Arc<Self>,
        here: Option<(&mut Poller, Placement)>,
        socket: OwnedFd,
        (permit, entering): (Permit, Entering),
    ) {
        let limits = self.state().limits;
        let (next, here) = match here {
            Some((poller, Placement::WhereAccepted)) => {
                return (self.start)(poller, socket, limits, permit);
            }
            Some((poller, Placement::Balanced)) => (self.next_poller(), Some(poller)),
            None => (self.next_poller(), None),
        };
        match here {
            Some(poller) if Arc::ptr_eq(&next, poller.handle()) => {
                (self.start)(poller, socket, limits, permit);
            }
            _ => {
                let coming = Coming::to(&next);
                // If that poller has ended, the socket is closed with the call.
                next.call(move |poller| {
                    let admission = entering.admission();
                    if admission.state().refuses {
                        return admission.count_forced(1);
                    }
                    poller.arrived(coming);
                    (admission.start)(poller, socket, limits, permit);
                });
            }
        }
    }

    /// The one that gets the next connection: during a shutdown, of those that take part in it.
    fn next_poller(&self) -> Arc<Handle> {
        match &self.state().ending {
            Some(pollers) => self.pollers.choose_of(pollers),
            None => self.pollers.choose(),
        }
    }

    /// Lets in those who wait, as far as there is room, and accepts again. One at a time: letting one in may give back its
    /// place at once, which comes here again.
    fn admit_waiting(self: &Arc<Self>) {
        let mut state = self.state();
        if mem::replace(&mut state.admitting, true) {
            return;
        }
        while state.open < state.max {
            // The one who has waited longest.
            let Some(socket) = state.waiting.pop_front() else { break };
            let entering = self.enter(&mut state);
            drop(state);
            self.begin(None, socket, entering);
            state = self.state();
        }
        state.admitting = false;
        let has_room = state.open < state.max;
        let paused = if has_room { mem::take(&mut state.paused) } else { Vec::new() };
        drop(state);
        for (handle, listener) in paused {
            handle.call(move |poller| poller.resume_listener(listener));
        }
    }

    /// What new connections may hold.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.state().limits = limits;
    }

    pub(crate) fn limits(&self) -> Limits {
        self.state().limits
    }

    pub(crate) fn set_max(self: &Arc<Self>, max: Option<usize>) {
        self.state().max = max.unwrap_or(usize::MAX);
        self.admit_waiting();
    }

    /// The server is shutting down, and somebody waits for that.
    pub(crate) fn begin_ending(&self, pollers: &[Arc<Handle>]) {
        self.state().ending.get_or_insert_with(|| pollers.to_vec());
        self.tasks.tell_at_end(pollers.to_vec());
        self.tasks.close();
    }

    /// The pollers that take part in the shutdown.
    pub(crate) fn ending(&self) -> Vec<Arc<Handle>> {
        self.state().ending.clone().unwrap_or_default()
    }

    /// Nobody gets in any more.
    pub(crate) fn refuse(&self) {
        self.state().refuses = true;
    }

    /// Somebody is expected: until that is dropped, a shutdown is not over.
    pub(crate) fn expect(self: &Arc<Self>) -> Entering {
        self.state().entering += 1;
        Entering(self.clone())
    }

    pub(crate) fn open(&self) -> usize {
        self.state().open
    }

    pub(crate) fn stats(&self) -> ServerStats {
        let mut stats = self.figures.read();
        let state = self.state();
        stats.open_connections = state.open as u64;
        stats.waiting_connections = state.waiting.len() as u64;
        stats
    }

    /// Connections that were closed by force since the last call.
    pub(crate) fn take_forced(&self) -> usize {
        self.forced.swap(0, Ordering::Relaxed)
    }

    /// Has the pollers of a shutdown look again, if nobody is left: one of them may wait for that.
    fn tell_if_over(&self, state: MutexGuard<'_, State>) {
        let is_over = state.open == 0 && state.entering == 0 && state.waiting.is_empty();
        let ending = if is_over { state.ending.clone() } else { None };
        drop(state);
        ending.iter().flatten().for_each(|handle| handle.wake());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Acceptor for Entrance {
    fn accepted(self: Arc<Self>, poller: &mut Poller, listener: Token, socket: OwnedFd) {
        self.admission.admit(Some((poller, listener, self.placement)), socket);
    }

    fn is_over(&self) -> bool {
        self.admission.state().ending.is_some()
    }

    fn listens(&self, _: &Arc<Handle>, _: Token) {}

    fn successor(&self) -> Option<Arc<Handle>> {
        self.admission.pollers.running()
    }

    fn ended(&self) {}
}

impl Outstanding for Admission {
    fn is_empty(&self) -> bool {
        let state = self.state();
        // Whoever comes when the grace is over is closed, and need not be waited for.
        let all_gone = state.open == 0 && state.waiting.is_empty() && state.entering == 0;
        let all_in = state.refuses || all_gone;
        drop(state);
        all_in && self.tasks.is_empty()
    }

    fn give_up(&self) -> usize {
        let mut state = self.state();
        state.refuses = true;
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        waiting.len() + self.tasks.abort_all()
    }

    fn count_forced(&self, connections: usize) {
        self.forced.fetch_add(connections, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        let awaited = !state.waiting.is_empty() || !state.paused.is_empty();
        self.0.tell_if_over(state);
        if awaited {
            self.0.admit_waiting();
        }
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.entering -= 1;
        self.0.tell_if_over(state);
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Admission")
            .field("max", &state.max)
            .field("open", &state.open)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}
