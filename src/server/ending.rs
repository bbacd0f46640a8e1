//! How a server ends: step by step on all of its pollers, and nobody has to wait for it.
//!
//! Each step is a value that all pollers hold, and that is dropped when the last of them has done its part, or has ended. Its
//! destructor begins the next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use duopoll_core::Group;
use futures_channel::oneshot;

use crate::address::Address;
use crate::poller::shutdown::{Backlog, Outstanding};
use crate::pollers::Pollers;
use crate::server::admission::Admission;
use crate::time::now;
use crate::trace;

/// Longer than any grace, and short enough to be added to the time of day.
const GRACE_MAX: Duration = Duration::from_secs(1 << 32);

/// What all steps need.
struct Plan {
    /// Of the listener that the server was started with.
    address: Address,
    pollers: Pollers,
    /// They end with the server.
    own: bool,
    group: Group,
    admission: Arc<Admission>,
    grace: Duration,
    /// Connections that were closed by force.
    over: oneshot::Sender<usize>,
}

/// First everywhere, so that no poller accepts for another that has ended: nothing is accepted any more.
struct Unlistening(Mutex<Option<Plan>>);

/// Connections come to their ends.
struct Draining {
    plan: Mutex<Option<Plan>>,
    admission: Arc<Admission>,
}

/// The pollers end, if they are the server's own.
struct Stopping(Mutex<Option<Plan>>);

/// Begins the end of a server; what is returned says when it is over.
pub(super) fn begin(
    address: Address,
    pollers: Pollers,
    own: bool,
    group: Group,
    admission: Arc<Admission>,
    backlog: Backlog,
    grace: Duration,
) -> oneshot::Receiver<usize> {
    let (over, is_over) = oneshot::channel();
    // Before anybody is told to accept no more: whoever listens from now on is refused.
    let handles = pollers.handles();
    admission.begin_ending(&handles);
    trace::shutdown(&address, "unlistening", admission.open());
    let plan = Plan { address, pollers, own, group, admission, grace, over };
    let step = Arc::new(Unlistening(Mutex::new(Some(plan))));
    for handle in handles {
        handle.unlisten(group, backlog, Box::new(step.clone()));
    }
    is_over
}

fn take(plan: &Mutex<Option<Plan>>) -> Option<Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Drop for Unlistening {
    fn drop(&mut self) {
        let Some(plan) = take(&self.0) else { return };
        let deadline = now() + plan.grace.min(GRACE_MAX);
        let (group, admission) = (plan.group, plan.admission.clone());
        trace::shutdown(&plan.address, "draining", admission.open());
        let handles = admission.ending();
        let step = Arc::new(Draining { plan: Mutex::new(Some(plan)), admission });
        for handle in handles {
            handle.shut_down_group(group, deadline, step.clone());
        }
    }
}

impl Outstanding for Draining {
    fn give_up(&self) -> usize {
        self.admission.give_up()
    }

    fn is_empty(&self) -> bool {
        self.admission.is_empty()
    }

    fn count_forced(&self, connections: usize) {
        self.admission.count_forced(connections);
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        let Some(plan) = take(&self.plan) else { return };
        // Where no poller was left to let them in.
        let left = plan.admission.give_up();
        plan.admission.count_forced(left);
        plan.admission.refuse();
        trace::shutdown(&plan.address, "stopping", plan.admission.open());
        let stopped = if plan.own { plan.pollers.begin_stop() } else { Vec::new() };
        let step = Arc::new(Stopping(Mutex::new(Some(plan))));
        for handle in stopped {
            handle.stop(Some(Box::new(step.clone())));
        }
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        let Some(plan) = take(&self.0) else { return };
        let forced = plan.admission.take_forced();
        trace::shut_down(&plan.address, forced);
        // Whoever waits is woken by a waker of theirs.
        duopoll_core::contain("a waker", || {
            let _ = plan.over.send(forced);
        });
    }
}
