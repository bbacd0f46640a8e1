//! Its deadlines.

use super::outcome::Expired;
use super::request::Limit;
use super::state::{Input, Notes, Output, Phase, Todo};
use super::{Lifecycle, NOT_ASKED, few};
use crate::clock::Clock;
use crate::connection::effects::Effects;
use crate::poll::Pending;
use crate::timer::Tick;

/// A timer that is looked at so much later than it was due says that the poller was held up, in ticks.
pub(crate) const LATE: Tick = 10;

/// How long a closed connection may take to send what is left if others need its memory.
const HURRIED_MS: Tick = 100;

impl Lifecycle {
    /// Changes a limit, and sees to it that a wait that is under way keeps the new one.
    pub(crate) fn limit(&mut self, change: Limit, now: Tick) -> Effects {
        let mut effects = Effects::default();
        let past = matches!(change, Limit::WriteDeadline(Some(deadline)) if deadline <= now);
        let ends_flush = past && self.output != Output::Connecting;
        match change {
            Limit::ReadTimeout(timeout) => self.reading.set_timeout(timeout),
            Limit::WriteTimeout(timeout) => self.writing.set_timeout(timeout),
            Limit::ReadDeadline(deadline) => self.reading.set_deadline(deadline),
            Limit::WriteDeadline(deadline) => self.writing.set_deadline(deadline),
            Limit::IdleTimeout(timeout) => {
                let waits = self.waits_for_peer();
                self.idle.set_timeout(timeout, waits, now);
            }
        }
        if self.reader.is_some() && self.need > 0 {
            self.reading.began(now);
        }
        if self.writer.is_some() {
            self.writing.began(now);
            if ends_flush {
                self.writing.expire(now);
                effects.writer = self.writer.take();
            }
        }
        self.arm();
        effects
    }

    /// Ends what is due, but not before what had come by then. Without an answer to what that is, asks for it.
    /// `gives_up`: it was waited for long enough.
    pub(crate) fn expire(
        &mut self,
        now: Tick,
        pending: Option<Pending>,
        gives_up: bool,
    ) -> Expired {
        if self.phase != Phase::Open {
            return Expired::Closing;
        }
        let is_due = |until: Tick| until <= now;
        let read_due = is_due(self.reading.until());
        let (mut write_due, mut idle_due) =
            (is_due(self.writing.until()), is_due(self.idle.until()));
        // Not if the timeout was shortened to what has passed already.
        let held_up = self.armed <= now && now - self.armed >= LATE;
        if idle_due && held_up && self.idle.prolong(now) {
            idle_due = false;
        }
        let connecting = self.output == Output::Connecting;
        // Whether there is room now does not matter: what the peer has made may be full again, in this turn.
        if write_due && held_up && !connecting && self.writing.prolong(now) {
            write_due = false;
        }
        let asks = (read_due && (self.late == NOT_ASKED || connecting))
            || (write_due && (!self.late_send || connecting))
            || idle_due;
        let receives = self.input == Input::Open && !self.paused && !self.stopped;
        let (mut comes, mut room) = (false, false);
        if asks {
            let Some(pending) = pending else { return Expired::Ask };
            comes = receives && (pending.bytes > 0 || pending.ended);
            if read_due && self.late == NOT_ASKED && !connecting {
                self.late = few(pending.bytes).saturating_add(u32::from(pending.ended));
            }
            // What there is room for is sent, or a connect has ended: its event is on the way.
            room = pending.room && (self.unsent > 0 || connecting);
            self.late_send |= write_due;
        }
        // A wait is ended by what had come by the time that it was due, a connection is idle if nothing comes at all.
        let awaited = match connecting {
            true => room,
            false => receives && self.late != NOT_ASKED && self.late > 0,
        };
        let hold = |due: bool, held: bool| (due && (gives_up || !held), due && held && !gives_up);
        let (read_ends, read_held) = hold(read_due, awaited);
        let (write_ends, write_held) = hold(write_due, room);
        let (idle, idle_held) = hold(idle_due, comes || room);
        let mut effects = Effects::default();
        if read_ends {
            self.need = 0;
            self.reading.expire(now);
            effects.reader = self.reader.take();
        }
        if write_ends {
            self.writing.expire(now);
            effects.writer = self.writer.take();
        }
        if !read_held {
            self.late = NOT_ASKED;
        }
        self.late_send &= write_held;
        let held = read_held || write_held || idle_held;
        let next = if held { now + 1 } else { self.due() };
        self.armed = next;
        Expired::Looked { effects, idle, next, held }
    }

    /// Ends a flush of a connection that is closing, if it is due; the connection goes on to its end. Gives when to look again.
    pub(crate) fn expire_flush(&mut self, now: Tick) -> (Effects, Tick) {
        let mut effects = Effects::default();
        // Not if the timeout was shortened to what has passed already.
        let held_up = self.armed <= now && now - self.armed >= LATE;
        if self.writing.until() <= now && !(held_up && self.writing.prolong(now)) {
            self.writing.expire(now);
            effects.writer = self.writer.take();
        }
        self.armed = self.writing.until();
        (effects, self.armed)
    }

    /// It works at a request, while it waits for what the peer may send besides: so long it is not idle.
    pub(crate) fn is_busy(&mut self, now: Tick) {
        self.idle.moved(now);
    }

    /// As [`is_busy`](Lifecycle::is_busy), since the peer takes what the kernel has. Gives when to look again.
    pub(crate) fn peer_has_taken(&mut self, at: Tick) -> Tick {
        self.idle.moved(at);
        self.armed = self.due();
        self.armed
    }

    /// How long it may be idle, in ticks.
    pub(crate) fn idle_timeout(&self) -> Option<Tick> {
        self.idle.timeout()
    }

    /// How long a closed connection may take to send what is left, in ticks.
    pub(crate) fn write_timeout(&self) -> Option<Tick> {
        if self.notes.has(Notes::HURRIES) { Some(HURRIED_MS) } else { self.writing.timeout() }
    }

    /// Sees to it that the poller's timer is set for the earliest deadline.
    #[inline]
    pub(super) fn arm(&mut self) {
        if self.due() < self.armed {
            self.ask(Todo::ARM);
        }
    }

    /// The earliest deadline there is.
    pub(super) fn due(&self) -> Tick {
        self.reading.until().min(self.writing.until()).min(self.idle.until())
    }

    #[inline]
    pub(super) fn recount(&mut self, clock: &dyn Clock) {
        if self.idle.is_limited() {
            let waits = self.waits_for_peer();
            if waits != self.idle.counts() {
                self.idle.count(waits, clock.now());
            }
        }
    }

    /// Whether somebody waits for the peer to send, or to make room.
    pub(super) fn waits_for_peer(&self) -> bool {
        let reads = self.need > 0 && self.reader.is_some() && !self.paused;
        let established = self.phase == Phase::Open && self.output != Output::Connecting;
        (reads || self.unsent > 0) && established
    }
}
