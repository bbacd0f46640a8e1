//! Graceful shutdowns of groups of connections: how far they are, and who waits for them.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use duopoll_core::{Driver, Group};

use crate::engine::AnyPoll;

/// How long a poller that ends waits for the kernel to give back what it holds. What it does not is leaked.
pub(super) const TEARDOWN: Duration = Duration::from_secs(10);

/// Who was accepted for a group, on this poller or elsewhere. Its shutdown is not over while there is anybody.
pub(crate) trait Outstanding: Send + Sync {
    /// Closes the sockets that wait. Returns how many.
    fn give_up(&self) -> usize;

    /// Whether nobody is open or waits to be.
    fn is_empty(&self) -> bool;
}

/// The shutdowns that are under way on a poller.
#[derive(Default)]
pub(super) struct Shutdowns {
    /// Groups that accept no more, and who waits for that.
    leaving: Vec<(Group, mpsc::Sender<()>)>,
    groups: Vec<GroupShutdown>,
}

/// A graceful shutdown of a group, under way.
pub(super) struct GroupShutdown {
    pub(super) group: Group,
    pub(super) deadline: Instant,
    pub(super) outstanding: Arc<dyn Outstanding>,
    /// Connections closed by force, once the deadline has passed.
    pub(super) forced: Option<usize>,
    pub(super) reply: mpsc::Sender<usize>,
}

impl Shutdowns {
    /// A group accepts no more: somebody waits until none of its listeners is left.
    pub(super) fn await_listeners(&mut self, group: Group, reply: mpsc::Sender<()>) {
        self.leaving.push((group, reply));
    }

    pub(super) fn push(&mut self, shutdown: GroupShutdown) {
        self.groups.push(shutdown);
    }

    /// Whether somebody waits for listeners.
    pub(super) fn awaits_listeners(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Answers those who wait for the listeners of a group, if it has none.
    pub(super) fn answer_unlistened(&mut self, listens: impl Fn(Group) -> bool) {
        self.leaving.retain(|(group, reply)| {
            let listens = listens(*group);
            if !listens {
                let _ = reply.send(());
            }
            listens
        });
    }

    /// Uses force where a deadline has passed, and answers those whose group is over.
    pub(super) fn advance(&mut self, driver: &mut Driver, engine: &mut AnyPoll) {
        if self.groups.is_empty() {
            return;
        }
        let now = Instant::now();
        for shutdown in &mut self.groups {
            if shutdown.forced.is_none() && now >= shutdown.deadline {
                let waiting = shutdown.outstanding.give_up();
                let open = driver.abort_group(engine, shutdown.group);
                shutdown.forced = Some(waiting + open);
            }
        }
        self.groups.retain(|shutdown| {
            let over = driver.left(shutdown.group) == 0 && shutdown.outstanding.is_empty();
            let late = shutdown.forced.is_some() && now >= shutdown.deadline + TEARDOWN;
            if over || late {
                driver.end_drain(shutdown.group);
                let _ = shutdown.reply.send(shutdown.forced.unwrap_or(0));
            }
            !(over || late)
        });
    }

    /// When each is to be looked at again, at the latest.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.groups.iter().map(|shutdown| match shutdown.forced {
            None => shutdown.deadline,
            Some(_) => shutdown.deadline + TEARDOWN,
        })
    }
}
