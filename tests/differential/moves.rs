//! What happens in the middle of a script.

use crate::author::*;
use crate::script::{ControlOp, Leave, Moment, Outcome, PeerOp, Place, ReadOp, Step, WriteOp};

impl Author {
    pub(crate) fn any_move(&mut self) {
        match self.random.between(0, 9) {
            0..=3 => self.input_move(),
            4..=6 => self.output_move(),
            7 => self.limits_that_do_nothing(),
            8 => self.callback_move(),
            _ if self.output == Side::Open && self.random.next() % 3 == 0 => self.finish(),
            _ => self.input_move(),
        }
    }

    pub(crate) fn input_move(&mut self) {
        if self.input == Side::Gone || self.phase == Phase::Between {
            return self.peer_sends();
        }
        match self.random.between(0, 12) {
            0 | 1 => self.peer_sends(),
            2 | 3 => self.read_some(),
            4 => self.read_what_was_handed_over(),
            5 | 6 => self.wait_and_get(),
            7 | 8 => self.wait_in_vain(),
            9 => self.abandon_a_read(),
            10 => self.insist(),
            11 => self.pause_and_resume(),
            _ => self.read_past_the_deadline(),
        }
    }

    pub(crate) fn output_move(&mut self) {
        if self.phase == Phase::Between || self.output != Side::Open {
            return self.peer_reads();
        }
        match self.random.between(0, 9) {
            0..=2 => {
                self.stage();
                self.flush();
            }
            3 => {
                self.stage();
                self.drain();
            }
            4 => self.stage(),
            5 => self.peer_reads(),
            6 => self.drain_past_the_deadline(),
            7 => self.abandon_a_flush(),
            _ if self.tight => self.flood(),
            _ => self.peer_reads(),
        }
    }

    /// While a read is under way.
    fn output_move_meanwhile(&mut self) {
        if !self.writing {
            self.reading = true;
            self.output_move();
            self.reading = false;
        }
    }

    /// While a write is under way.
    fn input_move_meanwhile(&mut self) {
        if !self.reading {
            self.writing = true;
            self.input_move();
            self.writing = false;
        }
    }

    pub(crate) fn peer_sends(&mut self) {
        if self.peer_finished {
            return;
        }
        let most = if self.random.next() % 4 == 0 { 300_000 } else { 5_000 };
        let n = self.random.length(most);
        self.send(n);
        if self.phase == Phase::Between {
            self.called("request");
        }
    }

    /// Reads bytes that the peer has sent, or will have.
    pub(crate) fn read_some(&mut self) {
        for _ in 0..self.random.between(1, 4) {
            let unread = self.unread();
            if unread == 0 {
                return;
            }
            let n = self.random.length(unread);
            let op = self.read_op(n);
            self.read_expecting(op, n);
        }
    }

    fn read_what_was_handed_over(&mut self) {
        self.settle();
        let unread = self.unread();
        self.expect_read(ReadOp::Buffered, Outcome::Value(unread as u64));
        if unread > 0 {
            let room = self.random.length(2 * unread);
            self.read_expecting(ReadOp::Read(room), room.min(unread));
        }
    }

    /// Waits for bytes that come while it waits.
    pub(crate) fn wait_and_get(&mut self) {
        if self.peer_finished {
            return self.read_to_the_end();
        }
        let (op, n) = self.waiting_op(true);
        self.begin_read(op.clone());
        if self.random.next() % 3 == 0 {
            self.output_move_meanwhile();
        }
        let mut missing = n - self.unread();
        while missing > 0 {
            let piece = self.random.length(missing);
            self.send(piece);
            missing -= piece;
        }
        if self.random.next() % 4 == 0 {
            let more = self.random.length(1000);
            self.send(more);
        }
        self.end_read(&op, n);
    }

    /// Waits for bytes that do not come.
    fn wait_in_vain(&mut self) {
        if self.peer_finished {
            return self.read_to_the_end();
        }
        let (op, n) = self.waiting_op(false);
        let timeout = ControlOp::ReadTimeout(Some(SHORT_MS));
        let past = ControlOp::ReadDeadline(Some(Moment::Past));
        let soon = ControlOp::ReadDeadline(Some(Moment::In(SHORT_MS)));
        let (limit, first) = match self.random.between(0, 4) {
            0 => (timeout, true),
            1 => (soon, true),
            2 => (timeout, false),
            3 => (soon, false),
            _ => (past, false),
        };
        if first {
            self.limit(limit);
            self.begin_read(op);
        } else {
            self.begin_read(op);
            if self.random.next() % 2 == 0 {
                self.output_move_meanwhile();
            }
            let missing = n - self.unread();
            if missing > 1 {
                let piece = self.random.length(missing - 1);
                self.send(piece);
            }
            self.step(Step::Control(limit));
        }
        self.expect(Step::ReadDone, TIMED_OUT);
        match limit {
            ControlOp::ReadTimeout(_) => self.limit(ControlOp::ReadTimeout(None)),
            _ => self.limit(ControlOp::ReadDeadline(None)),
        }
    }

    fn abandon_a_read(&mut self) {
        if self.peer_finished {
            return;
        }
        let (op, _) = self.waiting_op(false);
        let polls = self.random.between(1, 4) as u32;
        self.expect_read(ReadOp::Abandon(polls, Box::new(op)), Outcome::Dropped);
    }

    fn insist(&mut self) {
        let unread = self.unread();
        if unread == 0 {
            return;
        }
        let n = self.random.length(unread);
        let op = match self.random.between(0, 3) {
            0 => ReadOp::Next(n),
            1 => ReadOp::Peek(n),
            2 => ReadOp::SplitTo(n),
            _ => ReadOp::Fill(n),
        };
        let polls = self.random.between(1, 4) as u32;
        let consumed = op.consumes(n);
        let outcome = op.success(self.read, n);
        self.expect_read(ReadOp::Insist(polls, Box::new(op)), outcome);
        self.read_up_to(consumed);
    }

    fn read_past_the_deadline(&mut self) {
        self.settle();
        self.limit(ControlOp::ReadDeadline(Some(Moment::Past)));
        self.read_some();
        if !self.peer_finished {
            let (op, _) = self.waiting_op(false);
            self.expect_read(op, TIMED_OUT);
        }
        self.limit(ControlOp::ReadDeadline(None));
    }

    fn pause_and_resume(&mut self) {
        self.limit_elsewhere(ControlOp::Pause);
        self.peer_sends();
        if self.random.next() % 2 == 0 {
            self.output_move_meanwhile();
        }
        let n = self.unread();
        let op = self.read_op(n.max(1));
        if n == 0 || self.random.next() % 2 == 0 {
            return self.limit_elsewhere(ControlOp::Resume);
        }
        self.begin_read(op.clone());
        self.limit_elsewhere(ControlOp::Resume);
        self.end_read(&op, n);
    }

    /// The peer has finished: whatever asks for more gets the end, and what has come stays.
    pub(crate) fn read_to_the_end(&mut self) {
        let unread = self.unread();
        match self.random.between(0, 4) {
            0 => self.expect_read(ReadOp::Next(unread + 1), END),
            1 => self.expect_read(ReadOp::Peek(unread + 7), END),
            2 => self.expect_read(ReadOp::Fill(unread + 100), END),
            3 => {
                self.settle();
                self.expect_read(ReadOp::More, Outcome::Value(0));
            }
            _ => self.read_expecting(ReadOp::ReadAll(unread + 5), unread),
        }
        self.input = Side::Ended;
        self.settled = self.sent;
    }

    /// Stages some pieces.
    fn stage(&mut self) {
        for _ in 0..self.random.between(1, 4) {
            let most = if self.random.next() % 4 == 0 { 20_000 } else { 500 };
            let n = self.random.length(most);
            let op = match self.random.between(0, 4) {
                0 => WriteOp::Write(n),
                1 => WriteOp::Push(n),
                2 => WriteOp::PushOwned(n),
                3 => WriteOp::Append(n),
                _ => WriteOp::Commit(n + self.random.length(1000), n),
            };
            self.stage_op(op, n);
        }
    }

    pub(crate) fn stage_op(&mut self, op: WriteOp, n: usize) {
        let at = self.flushed + self.staged;
        self.staged += n as u64;
        self.step(Step::Write(at, op));
        self.expect(Step::WriteDone, Outcome::Value(self.staged));
    }

    fn flush(&mut self) {
        let waits = self.unsent + self.staged > self.output_high();
        self.hand_over();
        self.begin_write(WriteOp::Flush);
        if waits {
            self.peer_reads_all();
            self.unsent = self.output_high() / 2;
        }
        self.expect(Step::WriteDone, Outcome::Done);
    }

    pub(crate) fn drain(&mut self) {
        self.hand_over();
        self.begin_write(WriteOp::Drain);
        if self.flushed - self.peer_read > FITS_BYTES {
            self.peer_reads_all();
        }
        self.expect(Step::WriteDone, Outcome::Done);
        self.unsent = 0;
        if self.random.next() % 4 == 0 {
            self.begin_write(WriteOp::Unsent);
            self.expect(Step::WriteDone, Outcome::Value(0));
        }
    }

    fn drain_past_the_deadline(&mut self) {
        self.step(Step::Control(ControlOp::WriteDeadline(Some(Moment::Past))));
        self.stage();
        self.hand_over();
        self.begin_write(WriteOp::Drain);
        self.expect(Step::WriteDone, TIMED_OUT);
        self.step(Step::Control(ControlOp::WriteDeadline(None)));
        if self.random.next() % 2 == 0 {
            self.drain();
        }
    }

    fn abandon_a_flush(&mut self) {
        self.stage();
        if self.unsent + self.staged > self.output_high() {
            return self.flush();
        }
        self.hand_over();
        let polls = self.random.between(1, 3) as u32;
        self.begin_write(WriteOp::AbandonFlush(polls));
        self.expect(Step::WriteDone, Outcome::Done);
    }

    /// Flushes more than fits, while the peer does not read.
    fn flood(&mut self) {
        let begin = self.begin_flood();
        let drains = matches!(begin, WriteOp::Drain);
        match self.random.between(0, 4) {
            0 => {
                self.begin_write(begin);
                if self.random.next() % 2 == 0 {
                    self.input_move_meanwhile();
                }
                self.peer_reads_all();
                self.expect(Step::WriteDone, Outcome::Done);
            }
            1 => {
                self.step(Step::Control(ControlOp::WriteTimeout(Some(SHORT_MS))));
                self.begin_write(begin);
                self.expect(Step::WriteDone, TIMED_OUT);
                self.step(Step::Control(ControlOp::WriteTimeout(None)));
            }
            2 => {
                self.begin_write(begin);
                let moment = if drains { Moment::Past } else { Moment::In(SHORT_MS) };
                self.step(Step::Control(ControlOp::WriteDeadline(Some(moment))));
                self.expect(Step::WriteDone, TIMED_OUT);
                self.step(Step::Control(ControlOp::WriteDeadline(None)));
            }
            _ => {
                let polls = self.random.between(1, 4) as u32;
                let abandon = if drains { WriteOp::AbandonDrain } else { WriteOp::AbandonFlush };
                self.begin_write(abandon(polls));
                self.expect(Step::WriteDone, Outcome::Dropped);
            }
        }
        self.drain_while_the_peer_reads();
    }

    /// Stages a flood, which is flushed with what this returns.
    pub(crate) fn begin_flood(&mut self) -> WriteOp {
        self.stage_op(WriteOp::Push(FLOOD_BYTES), FLOOD_BYTES);
        self.hand_over();
        if self.random.next() % 2 == 0 { WriteOp::Flush } else { WriteOp::Drain }
    }

    fn drain_while_the_peer_reads(&mut self) {
        self.begin_write(WriteOp::Drain);
        self.peer_reads_all();
        self.expect(Step::WriteDone, Outcome::Done);
        self.unsent = 0;
    }

    fn peer_reads(&mut self) {
        let most = (self.flushed - self.peer_read) as usize;
        if most > 0 {
            let n = self.random.length(most);
            self.peer_reads_exactly(n);
        }
    }

    pub(crate) fn peer_reads_all(&mut self) {
        self.peer_reads_exactly((self.flushed - self.peer_read) as usize);
    }

    fn peer_reads_exactly(&mut self, n: usize) {
        if n > 0 {
            let outcome = Outcome::Bytes(self.peer_read, n);
            self.expect(Step::Peer(PeerOp::Read(self.peer_read, n)), outcome);
            self.peer_read += n as u64;
        }
    }

    /// The user ends its sending direction, and goes on receiving.
    fn finish(&mut self) {
        if self.phase == Phase::Between {
            return;
        }
        if self.flushed - self.peer_read > FITS_BYTES || self.random.next() % 2 == 0 {
            self.drain();
        }
        let drop = self.place == Place::Halves && self.random.next() % 2 == 0;
        self.begin_write(if drop { WriteOp::Drop } else { WriteOp::Finish });
        self.expect(Step::WriteDone, Outcome::Done);
        if !drop {
            // What is staged goes along.
            self.hand_over();
        }
        self.staged = 0;
        self.output = if drop { Side::Gone } else { Side::Ended };
        if !drop {
            self.write_in_vain(CLOSED);
        }
    }

    /// What is written after the end is not sent, and a flush says so.
    pub(crate) fn write_in_vain(&mut self, why: Outcome) {
        self.stage_op(WriteOp::Write(10), 10);
        self.begin_write(WriteOp::Flush);
        self.expect(Step::WriteDone, why);
        // The bytes stay staged, and never go out.
        self.begin_write(WriteOp::Finish);
        self.expect(Step::WriteDone, Outcome::Done);
        self.staged = 0;
    }

    /// Timeouts that are too long to matter, and are forgotten again or not.
    fn limits_that_do_nothing(&mut self) {
        let far = Some(Moment::In(LONG_MS));
        let op = match self.random.between(0, 4) {
            0 => ControlOp::ReadTimeout(Some(LONG_MS)),
            1 => ControlOp::WriteTimeout(Some(LONG_MS)),
            2 => ControlOp::IdleTimeout(Some(LONG_MS)),
            3 => ControlOp::ReadDeadline(far),
            _ => ControlOp::WriteDeadline(far),
        };
        self.limit(op);
    }

    /// The callback returns, and the next one comes when there are bytes for it.
    fn callback_move(&mut self) {
        if !matches!(self.phase, Phase::Connect | Phase::Request) || self.output != Side::Open {
            return;
        }
        if self.peer_finished || self.unsent + self.staged > self.output_high() {
            return;
        }
        let took = self.phase == Phase::Connect || self.read > self.read_at_call;
        if !took {
            self.settle();
        }
        self.leave(Leave::Normally);
        self.hand_over();
        if self.unread() > 0 && took {
            return self.called("request");
        }
        self.phase = Phase::Between;
        match self.random.between(0, 3) {
            // No limit on reads goes for the time between two requests.
            0 => {
                self.step(Step::Control(ControlOp::ReadTimeout(Some(SHORT_MS))));
                self.output_move();
                self.peer_sends();
                self.step(Step::Control(ControlOp::ReadTimeout(None)));
            }
            1 => self.peer_sends(),
            _ => {}
        }
    }
}
