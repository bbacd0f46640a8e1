//! What the users do.

use std::sync::Arc;
use std::task::{Poll, Waker};

use super::world::{HIGH_LOW, Step, Waiter, World};
use crate::clock::Clock;
use crate::connection::effects::Offer;
use crate::connection::lifecycle::{Half, Limit, Output, Refusal, Wanted};
use crate::connection::wait::Owner;

impl World {
    pub(super) fn poll_reader(&mut self, step: Step) {
        self.reader.bell = Arc::default();
        let waker = Waker::from(self.reader.bell.clone());
        let mut offer = Offer::new(&waker, true);
        let World { life, buffer, clock, .. } = self;
        let polled = match step {
            Step::Detach => life.detach(buffer, &mut offer, clock),
            Step::Request => life.fill(buffer, 1, Wanted::Request, &mut offer, clock),
            Step::Read(n) => life.fill(buffer, n, Wanted::Bytes(Owner::Future), &mut offer, clock),
            _ => unreachable!(),
        };
        assert!(!polled.retry, "a clone was there");
        self.reader.waits = polled.result.is_pending().then_some(step);
        if polled.result.is_ready() {
            let bytes = self.buffer.next(self.buffer.len()).unwrap();
            for &byte in &bytes[..] {
                assert_eq!(
                    byte, self.read,
                    "bytes that were read are in the order in which they were sent"
                );
                self.read += 1;
            }
        }
        if polled.result == Poll::Ready(Err(Refusal::Ended)) && matches!(step, Step::Read(_)) {
            assert!(self.peer_ended, "the end of the stream is the peer's");
            assert_eq!(self.read, self.sent, "and comes behind all bytes");
            self.saw_end = true;
        }
        if polled.result == Poll::Ready(Ok(())) {
            assert!(!self.saw_end || step == Step::Detach, "nothing comes behind the end");
        }
    }

    pub(super) fn poll_writer(&mut self) {
        self.writer.bell = Arc::default();
        let waker = Waker::from(self.writer.bell.clone());
        let mut offer = Offer::new(&waker, true);
        let World { life, staged, clock, .. } = self;
        let polled = match life.output {
            Output::Connecting => life.poll_connected(Owner::Future, &mut offer, clock),
            _ => life.flush(staged, HIGH_LOW, Owner::Future, &mut offer, clock),
        };
        assert!(!polled.retry, "a clone was there");
        self.must_send |= polled.send.is_some();
        self.writer.waits = polled.result.is_pending().then_some(Step::Flush);
        self.note_flushed();
    }

    /// What is not staged any more was flushed.
    pub(super) fn note_flushed(&mut self) {
        let staged = self.staged.len() + self.staged.reserved_len();
        self.flushed = self.written - staged as u8;
    }

    pub(super) fn drop_half(&mut self, half: Half) {
        match half {
            Half::Reader => {
                self.has_reader = false;
                self.reader = Waiter::default();
            }
            Half::Writer => {
                self.has_writer = false;
                self.writer = Waiter::default();
            }
        }
        let effects = self.life.half_gone(half, &self.clock);
        effects.perform();
    }

    pub(super) fn limit(&mut self, limit: Limit) {
        let effects = self.life.limit(limit, self.clock.now());
        effects.perform();
    }
}
