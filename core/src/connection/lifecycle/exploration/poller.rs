//! What the poller and its engine do, as the driver and an engine do it.

use std::mem;

use super::world::{INPUT_HIGH, World};
use crate::buffer::BufferSeam;
use crate::buffer::{Chain, LinkBuffer};
use crate::clock::Clock;
use crate::connection::lifecycle::{Closing, Expired, Moved, Output, Phase, Reason, Todo};
use crate::poll::{Deregister, Next, Outputs, Pending};

impl World {
    pub(super) fn look(&mut self) {
        self.told = false;
        let todo = self.life.take_todo();
        if !self.is_registered() {
            return;
        }
        if todo.has(Todo::ABORT) {
            return self.deregister(Reason::Aborted);
        }
        if todo.has(Todo::DETACH) && self.life.leave() {
            self.open -= i32::from(self.life.uncount());
            self.deregister(Reason::Detached);
        }
        if todo.has(Todo::CLOSE) {
            self.begin_closing();
        }
        if todo.has(Todo::RECEIVE) && self.life.receives().is_some() && !self.peer_ended {
            self.receives = !self.is_connecting();
        }
        if todo.has(Todo::ARM) {
            self.look_at_deadlines();
        }
    }

    pub(super) fn begin_closing(&mut self) {
        if self.life.phase() != Phase::Sending || mem::replace(&mut self.closing, true) {
            return;
        }
        self.open -= i32::from(self.life.uncount());
        self.must_send = true;
        self.receives |= !self.peer_ended && !self.broken;
        self.end_turn();
    }

    pub(super) fn end_turn(&mut self) {
        if self.closing && self.is_registered() && self.life.go_on_closing(false) == Closing::Ends {
            self.deregister(Reason::Closed);
        }
    }

    pub(super) fn send(&mut self, n: usize) {
        self.must_send = false;
        match self.life.take_output(&mut self.sending) {
            Ok(_) => {
                let n = n.min(self.sending.len());
                self.take(n);
                let now = self.clock.now();
                let moved = self.life.sent(n, &mut self.sending, || now);
                self.must_send = moved.next != Next::Stop;
                crate::connection::wake(moved.waker);
            }
            Err(Outputs::Finish) => {
                assert_eq!(self.got, self.flushed, "the FIN comes behind all that was flushed");
                self.saw_fin = true;
            }
            Err(_) => {}
        }
        self.end_turn();
    }

    /// The peer gets `n` bytes of what is being sent.
    pub(super) fn take(&mut self, n: usize) {
        let mut bytes = self.sending.iter().flat_map(|slice| slice.to_vec());
        for _ in 0..n {
            assert_eq!(
                bytes.next(),
                Some(self.got),
                "the peer gets what was flushed, in its order"
            );
            self.got += 1;
        }
        drop(bytes);
        self.sending.advance(n);
    }

    pub(super) fn asks_for_input(&mut self) -> bool {
        if !self.is_registered() || self.broken {
            return false;
        }
        self.receives &= self.life.receives().is_some();
        self.receives
    }

    pub(super) fn deliver(&mut self) {
        let byte = self.sent;
        self.sent += 1;
        let push = |inbox: &mut Chain, _| {
            let mut bytes = LinkBuffer::new();
            bytes.write(&[byte]).unwrap();
            bytes.drain_into(inbox);
        };
        let Moved { waker, next, .. } = match self.life.discards() {
            true => self.life.discard(1, &self.clock),
            false => self.life.deliver(INPUT_HIGH, &self.clock, push),
        };
        crate::connection::wake(waker);
        self.receives = next == Next::More;
    }

    pub(super) fn look_at_deadlines(&mut self) {
        if !self.is_registered() {
            return;
        }
        let now = self.clock.now();
        let mut expired = self.life.expire(now, None, false);
        if let Expired::Ask = expired {
            let pending = Pending { bytes: usize::from(self.arrived), ended: false, room: false };
            expired = self.life.expire(now, Some(pending), false);
        }
        match expired {
            Expired::Looked { effects, idle, .. } => {
                if idle {
                    assert!(!self.arrived, "whoever has sent is not idle");
                    self.deregister(Reason::Idle);
                }
                effects.perform();
            }
            // Its timer ends it, by force.
            Expired::Closing if !self.closing => {}
            Expired::Closing => match self.life.phase() {
                Phase::Sending => self.deregister(Reason::Unsent),
                Phase::Lingering => self.deregister(Reason::Closed),
                _ => {}
            },
            Expired::Ask => panic!("was told"),
        }
    }

    pub(super) fn deregister(&mut self, reason: Reason) {
        let unsent = self.flushed > self.got && !matches!(self.life.output, Output::Failed(_));
        let within = self.life.phase == Phase::Open
            && self.life.output == Output::Open
            && self.life.is_within_request();
        let Some(end) = self.life.deregister(reason, false, &self.clock) else { return };
        self.open -= i32::from(end.was_open);
        self.how = Some(end.how);
        match end.how {
            Deregister::Close | Deregister::Shutdown => {
                assert!(
                    !unsent && !within,
                    "what is cut short does not end with a FIN: {reason:?}"
                );
            }
            Deregister::Leave => assert_eq!(reason, Reason::Detached),
            Deregister::Abort => {}
        }
        end.effects.perform();
    }
}
