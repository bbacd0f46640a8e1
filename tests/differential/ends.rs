//! How scripts end.

use crate::author::*;
use crate::script::{
    ControlOp, Leave, Moment, Outcome, PeerEnd, PeerOp, Place, ReadOp, Step, WriteOp,
};
use crate::support::Family;

impl Author {
    pub(crate) fn any_end(&mut self) {
        if self.alone {
            return self.end_by_shutdown();
        }
        if self.phase == Phase::Between {
            return self.end_between_requests();
        }
        let can_read = self.input == Side::Open && !self.peer_finished;
        match self.random.between(0, 11) {
            0 | 1 if can_read => self.end_by_reset(),
            2 if can_read && self.tight && self.output == Side::Open => {
                self.end_by_reset_in_flood()
            }
            3 if can_read => self.end_by_idle_timeout(),
            4 => self.end_by_abort(),
            5 if can_read => self.end_by_close(),
            6 if self.place == Place::Dialed => self.end_by_detach(),
            7 | 8 if can_read => self.end_by_the_peer(),
            9 if self.place == Place::Halves => self.end_half_by_half(),
            10 if self.tight && self.output == Side::Open => self.end_in_flood(),
            _ => self.end_by_leaving(),
        }
    }

    /// The connection breaks while both directions are at rest.
    fn end_by_reset(&mut self) {
        if self.output == Side::Open {
            self.drain();
        }
        if self.sent - self.settled > FITS_BYTES {
            self.settle();
        }
        let unread_by_peer = self.flushed > self.peer_read;
        let waits = self.random.next() % 2 == 0;
        let (op, _) = self.waiting_op(false);
        if waits {
            self.begin_read(op.clone());
        }
        self.step(Step::Barrier);
        self.step(Step::Peer(PeerOp::Reset));
        if !waits {
            self.begin_read(op);
        }
        let (reads, writes) = match (self.family, unread_by_peer) {
            // A Unix socket that is closed with bytes unread tells the other end so, and else just ends.
            (Family::Unix, false) => (END, PIPE),
            _ => (RESET, RESET),
        };
        self.expect(Step::ReadDone, self.more_aware(&reads));
        // What had arrived is all there.
        self.settled = self.sent;
        self.broken(reads);
        if self.output == Side::Open {
            self.stage_op(WriteOp::Write(10), 10);
            self.begin_write(WriteOp::Drain);
            self.expect(Step::WriteDone, writes);
        }
        self.is_not_active();
        self.let_go();
    }

    /// The same, while a flush waits.
    fn end_by_reset_in_flood(&mut self) {
        self.settle();
        let begin = self.begin_flood();
        self.begin_write(begin);
        self.step(Step::Barrier);
        let (op, _) = self.waiting_op(false);
        self.begin_read(op);
        self.step(Step::Peer(PeerOp::Reset));
        self.expect(Step::WriteDone, Outcome::Broken);
        self.expect(Step::ReadDone, RESET);
        self.settled = self.sent;
        self.broken(RESET);
        self.is_not_active();
        self.let_go();
    }

    fn end_by_idle_timeout(&mut self) {
        if self.output == Side::Open {
            self.drain();
        }
        self.peer_reads_all();
        self.settle();
        let (op, _) = self.waiting_op(false);
        if self.random.next() % 2 == 0 {
            self.begin_read(op);
            self.limit_elsewhere(ControlOp::IdleTimeout(Some(SHORT_MS)));
        } else {
            // From now on it may be over at any moment.
            self.limit_elsewhere(ControlOp::IdleTimeout(Some(SHORT_MS)));
            self.begin_read(op);
        }
        self.expect(Step::ReadDone, IDLE);
        self.broken(IDLE);
        if self.output == Side::Open {
            self.begin_write(WriteOp::Flush);
            self.expect(Step::WriteDone, IDLE);
        }
        self.is_not_active();
        let end = self.end_of_a_cut();
        self.peer_gets(end);
        self.let_go();
    }

    /// How the peer sees an end in the middle of a request: never as that of a whole reply.
    fn end_of_a_cut(&self) -> PeerEnd {
        let within = self.place == Place::Served && self.output == Side::Open;
        if within && self.family != Family::Unix { PeerEnd::Reset } else { PeerEnd::Fin }
    }

    fn end_by_abort(&mut self) {
        if self.output == Side::Open {
            self.drain();
        }
        self.peer_reads_all();
        let is_open = self.input == Side::Open && !self.peer_finished;
        if is_open {
            self.settle();
        }
        let waits = is_open && self.random.next() % 2 == 0;
        if waits {
            let (op, _) = self.waiting_op(false);
            self.begin_read(op);
        }
        // A FIN that is on its way is out then.
        self.step(Step::Barrier);
        self.step(Step::Control(ControlOp::Abort));
        if waits {
            self.expect(Step::ReadDone, ABORTED);
        }
        self.step(Step::Barrier);
        if is_open {
            self.broken(ABORTED);
        }
        if self.output == Side::Open {
            self.begin_write(WriteOp::Flush);
            self.expect(Step::WriteDone, ABORTED);
        }
        self.is_not_active();
        let resets = self.family != Family::Unix && self.output == Side::Open;
        self.peer_gets(if resets { PeerEnd::Reset } else { PeerEnd::Fin });
        self.let_go();
    }

    fn end_by_close(&mut self) {
        self.settle();
        let waits = self.random.next() % 2 == 0;
        if waits {
            let (op, _) = self.waiting_op(false);
            self.begin_read(op);
        }
        self.step(Step::Control(ControlOp::Close));
        if waits {
            self.expect(Step::ReadDone, CLOSED);
        }
        self.broken(CLOSED);
        if self.output == Side::Open {
            self.write_in_vain(CLOSED);
        }
        self.is_not_active();
        if self.random.next() % 2 == 0 {
            // Thrown away.
            let n = self.random.length(300_000);
            self.send(n);
        }
        self.peer_gets(PeerEnd::Fin);
        self.step(Step::Peer(PeerOp::Close));
        self.let_go();
    }

    fn end_by_detach(&mut self) {
        if self.output == Side::Open {
            self.drain();
        }
        let unread = self.unread();
        let reply = if self.output == Side::Open { self.random.length(5000) } else { 0 };
        self.step(Step::Leave(Leave::Detach));
        let step = Step::Detached { at: self.read, unread, reply: (self.flushed, reply) };
        self.expect(step, Outcome::Bytes(self.read, unread));
        self.flushed += reply as u64;
        self.peer_gets(PeerEnd::Fin);
    }

    /// The peer ends its direction first; what has come is read, and answered.
    fn end_by_the_peer(&mut self) {
        let waits = self.random.next() % 2 == 0;
        if waits {
            let (op, n) = self.waiting_op(false);
            let is_more = matches!(op, ReadOp::More);
            self.begin_read(op);
            let missing = n - self.unread();
            if !is_more && missing > 1 && self.random.next() % 2 == 0 {
                let piece = self.random.length(missing - 1);
                self.send(piece);
            }
            self.step(Step::Peer(PeerOp::Finish));
            let outcome = if is_more { Outcome::Value(0) } else { END };
            self.expect(Step::ReadDone, outcome);
            self.input = Side::Ended;
            self.settled = self.sent;
        } else {
            self.step(Step::Peer(PeerOp::Finish));
        }
        self.peer_finished = true;
        for _ in 0..self.random.between(1, 4) {
            self.input_move();
            self.output_move();
        }
        self.read_to_the_end();
        let unread = self.unread();
        self.read_expecting(ReadOp::Next(unread), unread);
        self.read_expecting(ReadOp::Read(10), 0);
        self.end_by_leaving();
    }

    fn end_half_by_half(&mut self) {
        if self.random.next() % 2 == 0 && self.input != Side::Gone {
            self.expect_read(ReadOp::Drop, Outcome::Done);
            self.input = Side::Gone;
            // What comes now is thrown away.
            self.peer_sends();
            self.output_move();
            self.peer_sends();
            self.output_move();
        }
        self.end_by_leaving();
    }

    /// The user lets go while a flush waits: it goes out all the same.
    fn end_in_flood(&mut self) {
        let begin = self.begin_flood();
        self.begin_write(begin);
        if self.random.next() % 2 == 0 && self.input == Side::Open && !self.peer_finished {
            self.settle();
            self.step(Step::Control(ControlOp::Close));
            self.peer_gets(PeerEnd::Fin);
            self.expect(Step::WriteDone, Outcome::Done);
            self.broken(CLOSED);
            self.step(Step::Peer(PeerOp::Close));
            return self.let_go();
        }
        self.end_by_leaving();
    }

    fn end_by_leaving(&mut self) {
        let leave = match self.random.between(0, 4) {
            _ if self.place != Place::Served => Leave::Normally,
            0 => Leave::WithPanic,
            _ => Leave::WithError,
        };
        self.leave(leave);
        self.staged = 0;
        if self.place == Place::Served {
            self.disconnected();
        }
        self.peer_gets(PeerEnd::Fin);
    }

    fn end_between_requests(&mut self) {
        self.peer_reads_all();
        let unread = self.unread();
        match self.random.between(0, 4) {
            0 => self.step(Step::Peer(PeerOp::Finish)),
            // Whether the reset comes as one is seen above.
            1 => self.step(Step::Peer(PeerOp::Reset)),
            2 => self.step(Step::Control(ControlOp::Close)),
            3 => self.limit_elsewhere(ControlOp::IdleTimeout(Some(SHORT_MS))),
            _ => {
                self.step(Step::Control(ControlOp::ReadDeadline(Some(Moment::Past))));
                self.step(Step::Peer(PeerOp::Finish));
            }
        }
        let reset = matches!(self.steps.last(), Some(last) if matches!(last.step, Step::Peer(PeerOp::Reset)));
        self.called("disconnect");
        self.phase = Phase::Disconnect;
        // What had arrived and was left can still be read.
        self.read_expecting(ReadOp::Next(unread), unread);
        self.leave(Leave::Normally);
        if !reset {
            self.peer_gets(PeerEnd::Fin);
        }
    }

    fn end_by_shutdown(&mut self) {
        if self.output == Side::Open && self.phase != Phase::Between {
            self.drain();
        }
        self.peer_reads_all();
        if self.phase == Phase::Between {
            if self.unread() > 0 {
                // A request that has begun is waited for.
                self.send(1);
                self.called("request");
                return self.end_by_shutdown();
            }
            self.step(Step::Shutdown(LONG_MS));
            self.called("disconnect");
            self.leave(Leave::Normally);
            self.peer_gets(PeerEnd::Fin);
            self.step(Step::Peer(PeerOp::Close));
            return self.expect(Step::ShutdownDone, Outcome::Value(0));
        }
        let is_open = self.input == Side::Open && !self.peer_finished;
        if is_open && self.random.next() % 2 == 0 {
            // It does not end in time.
            self.settle();
            let (op, _) = self.waiting_op(false);
            self.begin_read(op);
            self.step(Step::Shutdown(SHORT_MS));
            self.expect(Step::ShutdownDone, Outcome::Value(1));
            self.expect(Step::ReadCutOff, Outcome::Dropped);
            let end = self.end_of_a_cut();
            return self.peer_gets(end);
        }
        self.step(Step::Shutdown(LONG_MS));
        if is_open {
            self.wait_and_get();
            let unread = self.unread();
            self.read_expecting(ReadOp::ReadAll(unread), unread);
        }
        if self.output == Side::Open {
            self.drain();
        }
        if self.output == Side::Open {
            self.stage_op(WriteOp::Write(100), 100);
        }
        let leave = if self.unread() == 0 { Leave::Normally } else { Leave::WithError };
        self.leave(leave);
        match leave {
            Leave::Normally => self.hand_over(),
            _ => self.staged = 0,
        }
        self.disconnected();
        self.peer_gets(PeerEnd::Fin);
        self.step(Step::Peer(PeerOp::Close));
        self.expect(Step::ShutdownDone, Outcome::Value(0));
    }

    /// Nothing more comes in, but what was handed over is still there.
    fn broken(&mut self, how: Outcome) {
        self.input = Side::Failed(how.clone());
        if self.settled == self.sent {
            self.read_some();
        }
        let unread = self.unread();
        self.expect_read(ReadOp::Next(unread + 1), how);
    }

    /// The last that the user does.
    fn let_go(&mut self) {
        let leave = if self.place == Place::Served { Leave::WithError } else { Leave::Normally };
        self.leave(leave);
        if self.place == Place::Served {
            self.disconnected();
        }
    }

    fn disconnected(&mut self) {
        self.called("disconnect");
        self.leave(Leave::Normally);
    }

    fn peer_gets(&mut self, end: PeerEnd) {
        let step = Step::Peer(PeerOp::ReadToEnd(self.peer_read));
        self.expect(step, Outcome::End(self.flushed, end));
    }

    fn is_not_active(&mut self) {
        self.expect(Step::IsActive, Outcome::Value(0));
    }
}
