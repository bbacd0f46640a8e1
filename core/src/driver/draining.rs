//! The end of a group of connections: between two requests each, or by force.

use std::os::fd::BorrowedFd;

use super::Driver;
use super::group::Group;
use super::slot::Slot;
use super::stream::Stream;
use crate::connection::{Control, Phase, Reason};
use crate::poll::Poll;
use crate::timer::Tick;
use crate::token::Token;

/// Slots that a turn goes through to tell the connections in them.
const DRAINED_IN_A_TURN: usize = 1024;

/// How long those are not told that have received nothing yet.
const NEWCOMER_MS: Tick = 500;

impl Driver {
    /// Tells every connection of a group, and those that are opened in it later, that it is to end between two
    /// requests, when what has arrived by then is handled. Some are told now, the others in the turns that follow; those that have
    /// received nothing yet half a second later, since whoever has just connected is about to ask, or when half of `grace_ms` is over.
    pub fn drain<P: Poll>(&mut self, engine: &mut P, group: Group, grace_ms: Tick) {
        if self.draining.has(group) {
            return;
        }
        let is_ours = |slot: &&Slot| matches!(slot, Slot::Stream(stream) if stream.group == group);
        let left = self.slots.iter().filter(is_ours).count();
        let patience = self.mailbox.clock().now() + NEWCOMER_MS.min(grace_ms / 2);
        self.draining.begin(group, left, patience);
        self.go_on_draining(engine);
    }

    /// Tells some of those who have not been told yet: a turn has other things to do, too.
    pub(super) fn go_on_draining<P: Poll>(&mut self, engine: &mut P) {
        if let Some(due) = self.draining.next_due() {
            self.tell_newcomers(engine, due);
        }
        let Some((group, first)) = self.draining.untold() else { return };
        let slots = self.slots.slots();
        let end = slots.min(first + DRAINED_IN_A_TURN);
        for index in first..end {
            let Some(token) = self.slots.token_at(index) else { continue };
            if self.stream(token).is_some_and(|stream| stream.group == group) {
                self.drain_one(engine, token);
            }
        }
        self.draining.told(group, (end < slots).then_some(end));
    }

    pub(super) fn drain_one<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(stream) = self.stream(token) else { return };
        let (shared, group) = (stream.shared.clone(), stream.group);
        if shared.phase() != Phase::Open {
            return;
        }
        let pending = engine.pending(token);
        let until = self.draining.patience(group);
        let is_new = !shared.has_received() && pending.bytes == 0 && !pending.ended;
        if is_new && until > self.mailbox.clock().now() {
            self.draining.tell_later(until, token);
        } else {
            shared.drain(pending.bytes);
        }
    }

    #[cold]
    fn tell_newcomers<P: Poll>(&mut self, engine: &mut P, due: Tick) {
        let now = self.mailbox.clock().now();
        if due > now {
            return;
        }
        for token in self.draining.take_due(now) {
            // The patience with them is over.
            self.drain_one(engine, token);
        }
    }

    /// Handles on the connections of a group that are open.
    pub fn controls(&self, group: Group) -> Vec<Control> {
        let ours = self.slots.iter().filter_map(|slot| match slot {
            Slot::Stream(stream) if stream.group == group => Some(&stream.shared),
            _ => None,
        });
        let open = ours.filter(|shared| shared.phase() == Phase::Open);
        open.map(|shared| Control::new(shared.clone())).collect()
    }

    /// The connection of that number, if there is one.
    pub fn control(&self, id: u64) -> Option<Control> {
        self.slots.iter().find_map(|slot| match slot {
            Slot::Stream(stream) if stream.shared.id() == id => {
                Some(Control::new(stream.shared.clone()))
            }
            _ => None,
        })
    }

    /// Connections of a group that have not been released since [`drain`](Driver::drain).
    pub fn left(&self, group: Group) -> usize {
        self.draining.left(group)
    }

    /// Forgets that a group drains.
    pub fn end_drain(&mut self, group: Group) {
        self.draining.end(group);
    }

    /// Ends every connection of a group now, whatever they are doing; what is cut off by that ends with a reset. Returns how
    /// many that were open, or had something to send. The engine goes on releasing them in its next turns.
    pub fn abort_group<P: Poll>(&mut self, engine: &mut P, group: Group) -> usize {
        self.abort_if(engine, |stream| stream.group == group)
    }

    /// Ends every connection and listener now; see [`abort_group`](Driver::abort_group).
    pub fn abort_all<P: Poll>(&mut self, engine: &mut P) -> usize {
        for token in self.slots.tokens().collect::<Vec<_>>() {
            self.unlisten(engine, token);
            self.unwatch(engine, token);
        }
        self.abort_if(engine, |_| true)
    }

    fn abort_if<P: Poll>(&mut self, engine: &mut P, chosen: impl Fn(&Stream) -> bool) -> usize {
        let before = self.stats.forced;
        for token in self.slots.tokens().collect::<Vec<_>>() {
            if self.stream(token).is_some_and(|stream| chosen(stream)) {
                self.deregister(engine, token, Reason::Forced);
            }
        }
        (self.stats.forced - before) as usize
    }

    /// The poller is about to end: closes every connection, and stops accepting. What was flushed still goes out, as long as
    /// the engine is given turns; see [`is_sending`](Driver::is_sending). A connection that is in the middle of a request is
    /// reset. Their users are told that the connection was aborted.
    pub fn wind_up<P: Poll>(&mut self, engine: &mut P) {
        for token in self.slots.tokens().collect::<Vec<_>>() {
            self.unlisten(engine, token);
            let Some(stream) = self.stream(token) else { continue };
            if stream.shared.clone().wind_up() {
                self.begin_closing(engine, token);
            } else {
                self.deregister(engine, token, Reason::Forced);
            }
        }
    }

    /// Whether a connection that is closed still has something to send.
    pub fn is_sending(&self) -> bool {
        self.slots.iter().any(|slot| match slot {
            Slot::Stream(stream) => stream.shared.phase() == Phase::Sending,
            Slot::Listener(_) | Slot::Watched(_) => false,
        })
    }

    /// The sockets of connections that are closed and have sent everything, as far as the kernel has taken it, while their
    /// peers have not closed.
    pub fn lingering(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Stream(stream) if stream.shared.phase() == Phase::Lingering => {
                // SAFETY: the stream lets go when it is dropped.
                unsafe { stream.shared.socket() }
            }
            _ => None,
        })
    }
}
