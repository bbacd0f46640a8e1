//! Graceful shutdowns of groups of connections: how far they are, and what is told when they are over.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use duopoll_core::{Driver, Group, Token as ListenerToken};

use crate::engine::AnyPoll;

/// How long a poller that ends waits for the kernel to give back what it holds. What it does not is leaked.
pub(super) const TEARDOWN: Duration = Duration::from_secs(10);

/// How long it takes until a listener is looked at again for which there were no descriptors.
const RETRY: Duration = Duration::from_millis(10);

/// Is dropped when something is over, and so tells whoever waits for it, even if the poller ends before.
pub(crate) type Token = Box<dyn Any + Send>;

/// A group's end, as whoever brings it about sees it. Dropped when it is over.
pub(crate) trait Outstanding: Send + Sync {
    /// Closes the sockets that wait to be served. Returns how many.
    fn give_up(&self) -> usize;

    /// Whether nobody who was accepted, on this poller or elsewhere, is open or waits to be.
    fn is_empty(&self) -> bool;

    /// So many connections of a poller were closed by force.
    fn count_forced(&self, connections: usize);
}

/// What becomes of those who wait at a listener that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backlog {
    Served,
    /// Somebody else serves them.
    Left,
}

/// The shutdowns that are under way on a poller.
#[derive(Default)]
pub(super) struct Shutdowns {
    /// Groups that accept no more, and what is dropped when none of their listeners is left.
    leaving: Vec<(Group, Token)>,
    /// Listeners at which somebody waits for whom there is no descriptor: when they are looked at again, and until when.
    short: Vec<(ListenerToken, Instant, Instant)>,
    groups: Vec<GroupShutdown>,
}

/// A graceful shutdown of a group, under way.
pub(super) struct GroupShutdown {
    pub(super) group: Group,
    pub(super) deadline: Instant,
    pub(super) outstanding: Arc<dyn Outstanding>,
    /// The deadline has passed.
    pub(super) forced: bool,
}

impl Shutdowns {
    /// A group accepts no more: `done` is dropped when none of its listeners is left.
    pub(super) fn await_listeners(&mut self, group: Group, done: Token) {
        self.leaving.push((group, done));
    }

    /// Has a listener be looked at again, which stops accepting then at the latest.
    pub(super) fn leave_later(&mut self, listener: ListenerToken, now: Instant, patience: Instant) {
        self.short.push((listener, now + RETRY, patience));
    }

    /// The listeners that are to be looked at now, and until when that goes on.
    pub(super) fn leave_now(
        &mut self,
        now: impl FnOnce() -> Instant,
    ) -> Vec<(ListenerToken, Instant)> {
        if self.short.is_empty() {
            return Vec::new();
        }
        let now = now();
        let (due, later) = self.short.drain(..).partition(|(_, next, _)| *next <= now);
        self.short = later;
        let due: Vec<(ListenerToken, Instant, Instant)> = due;
        due.into_iter().map(|(listener, _, patience)| (listener, patience)).collect()
    }

    pub(super) fn push(&mut self, shutdown: GroupShutdown) {
        self.groups.push(shutdown);
    }

    /// Tells those who wait for the listeners of a group, if it has none.
    pub(super) fn tell_unlistened(&mut self, listens: impl Fn(Group) -> bool) {
        self.leaving.retain(|(group, _)| listens(*group));
    }

    /// Uses force where a deadline has passed, and forgets those groups that are over.
    pub(super) fn advance(
        &mut self,
        driver: &mut Driver,
        engine: &mut AnyPoll,
        now: impl FnOnce() -> Instant,
    ) {
        if self.groups.is_empty() {
            return;
        }
        let now = now();
        for shutdown in &mut self.groups {
            if !shutdown.forced && now >= shutdown.deadline {
                shutdown.forced = true;
                let waiting = shutdown.outstanding.give_up();
                let open = driver.abort_group(engine, shutdown.group);
                shutdown.outstanding.count_forced(waiting + open);
            }
        }
        self.groups.retain(|shutdown| {
            let over = driver.left(shutdown.group) == 0 && shutdown.outstanding.is_empty();
            let late = shutdown.forced && now >= shutdown.deadline + TEARDOWN;
            if over || late {
                driver.end_drain(shutdown.group);
            }
            !(over || late)
        });
    }

    /// When each is to be looked at again, at the latest.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let short = self.short.iter().map(|(_, next, _)| *next);
        let groups = self.groups.iter().map(|shutdown| match shutdown.forced {
            false => shutdown.deadline,
            true => shutdown.deadline + TEARDOWN,
        });
        short.chain(groups)
    }
}
