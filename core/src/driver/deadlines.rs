//! Time: what is due, but not before what had come by then.

use std::mem;

use super::Driver;
use super::slot::Slot;
use crate::connection::{Expired, NEVER, Phase, Reason};
use crate::poll::Poll;
use crate::timer::Tick;
use crate::timers;
use crate::token::Token;
use crate::trace;

/// When a receive for which there was no memory is tried again, in milliseconds.
pub(super) const NO_MEMORY_RETRY_MS: Tick = 10;
/// How often in a row a deadline waits for what had come before it, a millisecond each time: an engine that cannot
/// receive, for want of memory, must not make a wait last for ever.
const HOLDS_MAX: u16 = 2_000;

/// Timers that are looked at so much later than they were due say that the poller was held up, in ticks.
const HELD_UP: Tick = 2;
/// Then they wait until what had come meanwhile is told, for so many turns at most.
const HELD_TURNS: u32 = 64;

impl Driver {
    /// Begins a turn: looks at the clock, and does what is due. After the commands, which may change what is.
    pub fn begin_turn<P: Poll>(&mut self, engine: &mut P) {
        let now = self.mailbox.clock().now();
        self.look_at_memory(engine, now);
        while let Some(index) = self.wheel.advance(now) {
            let Some(token) = self.slots.token_at(index) else { continue };
            match self.slots.get_mut(token) {
                Some(Slot::Listener(listener)) if !listener.deregistered => {
                    engine.receive(token, self);
                }
                Some(Slot::Stream(stream)) => {
                    let starved = std::mem::take(&mut stream.starved);
                    match stream.shared.phase() {
                        Phase::Open => {
                            if starved {
                                engine.receive(token, self);
                            }
                            self.look_at_deadlines(engine, token);
                        }
                        // It was closed in this very turn, and the command is on its way.
                        Phase::Sending if !stream.closing => self.begin_closing(engine, token),
                        Phase::Sending | Phase::Lingering => self.end_closing(engine, token),
                        Phase::Leaving => self.deregister(engine, token, Reason::Detached),
                        Phase::Deregistered { .. } | Phase::Released { .. } => {}
                    }
                }
                _ => {}
            }
        }
        self.fire_timers(engine, now);
        self.go_on_draining(engine);
        #[cfg(feature = "zerocopy")]
        self.pinned.give_back(now);
    }

    /// Timers that users wait for go off behind what had come by then, which may have woken them.
    fn fire_timers<P: Poll>(&mut self, engine: &mut P, now: Tick) {
        let slept = mem::take(&mut self.sleeps);
        let held_up = timers::next_expiry().is_some_and(|due| due + HELD_UP <= now);
        // A wait that was held up, a stopped process's, may have come back with nothing of what there is.
        let more = held_up && (slept || engine.has_more());
        if !more {
            self.timers_held = 0;
        } else if self.timers_held < HELD_TURNS {
            self.timers_held += 1;
            return;
        }
        timers::fire(now);
    }

    /// When the next timer is due.
    pub fn next_timer(&mut self) -> Option<Tick> {
        self.wheel.next_expiry().into_iter().chain(timers::next_expiry()).min()
    }

    /// When [`begin_turn`](Driver::begin_turn) is due next. Asked when the poller is about to sleep.
    pub fn next_expiry(&mut self) -> Option<Tick> {
        self.sleeps = self.timers_held == 0;
        // What its tasks have done since it was looked at may have brought the budget to another level.
        if self.draining.untold().is_some() || self.memory_changes_level() {
            return Some(0);
        }
        let memory = self.memory_due();
        let next = self.wheel.next_expiry().into_iter().chain(timers::next_expiry());
        let next = next.chain(self.draining.next_due()).chain(memory).min();
        #[cfg(feature = "zerocopy")]
        let next = next.into_iter().chain(self.pinned.due()).min();
        next
    }

    /// Ends the waits of an open connection that are due, or the connection if it was idle for too long, and sets
    /// the timer for the next.
    pub(super) fn look_at_deadlines<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let now = self.mailbox.clock().now();
        let Some(stream) = self.stream(token) else { return };
        let (shared, gives_up) = (stream.shared.clone(), stream.holds >= HOLDS_MAX);
        let mut expired = shared.expire(now, None, gives_up);
        if let Expired::Ask = expired {
            expired = shared.expire(now, Some(engine.pending(token)), gives_up);
        }
        let Expired::Looked { effects, idle, next, held } = expired else {
            return self.look_at_closing(token);
        };
        let taken = if idle { self.peer_took(token, now) } else { None };
        let (idle, next) = match taken {
            Some(at) => (false, shared.peer_has_taken(at)),
            None => (idle, next),
        };
        let Some(stream) = self.stream(token) else { return };
        stream.holds = if held { stream.holds.saturating_add(1) } else { 0 };
        let retry = if stream.starved { now + NO_MEMORY_RETRY_MS } else { NEVER };
        if idle {
            self.deregister(engine, token, Reason::Idle);
        } else {
            match next.min(retry) {
                NEVER => self.wheel.clear(token.index()),
                next => self.wheel.set(token.index(), next),
            }
        }
        let (reads, writes) = effects.wake();
        if reads {
            trace::timed_out(&*shared, true);
        }
        if writes {
            trace::timed_out(&*shared, false);
        }
        effects.perform();
    }

    /// When the peer has taken something, if that was since the connection was to end for the last time. The kernel tells of room only when
    /// there is much of it, which takes a slow reader a while.
    #[cold]
    fn peer_took(&mut self, token: Token, now: Tick) -> Option<Tick> {
        let shared = self.stream(token)?.shared.clone();
        let outstanding = shared.outstanding();
        let (_, unacknowledged) = outstanding;
        if unacknowledged > 0 {
            let is_less = self.untaken.insert(token, outstanding) != Some(outstanding);
            return is_less.then_some(now);
        }
        // It has all of it. What the kernel was given has put off the end; when it was taken may be later, which is asked for once,
        // since a peer that is alive goes on to acknowledge. It counts if the end would come much too early.
        let acknowledged = shared.acknowledged().filter(|_| self.mailbox.clock().is_real())?;
        let since = Tick::from(acknowledged.since_ms);
        let all = (usize::MAX, acknowledged.bytes as usize);
        let is_late = since * 2 <= shared.idle_timeout()?;
        (is_late && self.untaken.insert(token, all) != Some(all)).then(|| now.saturating_sub(since))
    }
}
