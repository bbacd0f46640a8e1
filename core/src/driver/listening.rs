//! Listening sockets: accepting from them, for a while or no more, and what happens when there is a shortage.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::Driver;
use super::slot::{ACCEPT_RETRY_MS, Accepted, Listener, Slot};
use crate::errno::is_of_the_network;
use crate::memory::MemoryLevel;
use crate::poll::{Deregister, Kind, Next, Poll};
use crate::timer::Tick;
use crate::token::Token;

/// Between two connections that are accepted while memory is short, or while there is none, in milliseconds.
const SHORT_RETRY_MS: Tick = 5;
const FULL_RETRY_MS: Tick = 80;

impl Driver {
    /// Registers a listening socket; what it accepts is given by [`take_accepted`](Driver::take_accepted).
    ///
    /// # Errors
    /// What the engine says; the socket is closed then.
    pub fn listen<P: Poll>(&mut self, engine: &mut P, socket: OwnedFd) -> io::Result<Token> {
        let fd = socket.as_raw_fd();
        let token = self.slots.insert_with(|_| Slot::Listener(Listener::new(socket)));
        // SAFETY: the slot has the socket, and is freed when the engine releases it; its token is nobody else's.
        if let Err(error) = unsafe { engine.register(token, fd, Kind::Listener, self) } {
            self.slots.remove(token);
            return Err(error);
        }
        Ok(token)
    }

    /// Accepts nothing more from this listener until [`resume_listener`](Driver::resume_listener).
    pub fn pause_listener(&mut self, token: Token) {
        if let Some(Slot::Listener(listener)) = self.slots.get_mut(token) {
            listener.paused = true;
        }
    }

    /// Accepts from this listener again.
    pub fn resume_listener<P: Poll>(&mut self, engine: &mut P, token: Token) {
        if let Some(Slot::Listener(listener)) = self.slots.get_mut(token) {
            if mem::take(&mut listener.paused) && !listener.deregistered {
                engine.receive(token, self);
            }
        }
    }

    /// The socket of a listener.
    pub fn listener(&self, token: Token) -> Option<BorrowedFd<'_>> {
        match self.slots.get(token) {
            Some(Slot::Listener(listener)) => Some(listener.socket.as_fd()),
            _ => None,
        }
    }

    /// Stops accepting.
    pub fn unlisten<P: Poll>(&mut self, engine: &mut P, token: Token) {
        if let Some(Slot::Listener(listener)) = self.slots.get_mut(token) {
            if !mem::replace(&mut listener.deregistered, true) {
                self.wheel.clear(token.index());
                engine.deregister(token, Deregister::Leave, self);
            }
        }
    }

    /// The connections accepted since the last call.
    pub fn take_accepted(&mut self, into: &mut Vec<Accepted>) {
        into.append(&mut self.accepted);
    }

    pub(super) fn accept(&mut self, token: Token, result: io::Result<OwnedFd>) -> Next {
        let Some(Slot::Listener(listener)) = self.slots.get_mut(token) else { return Next::Stop };
        match result {
            Ok(socket) => {
                listener.retry_ms = ACCEPT_RETRY_MS.0;
                let paused = listener.paused;
                self.accepted.push(Accepted { listener: token, socket });
                if paused {
                    return Next::Stop;
                }
                // One by one: whoever holds the memory may do so for ever, and the others are served with what is left.
                let pause = match self.memory.level {
                    MemoryLevel::Normal => return Next::More,
                    MemoryLevel::High => SHORT_RETRY_MS,
                    MemoryLevel::Full => FULL_RETRY_MS,
                };
                self.stats.memory_pauses += 1;
                self.wheel.set(token.index(), self.mailbox.clock().now() + pause);
                Next::Stop
            }
            // accept(2) hands on the errors of the connection that was to be accepted: the next one may be fine.
            Err(error) if is_of_the_network(&error) || listener.deregistered => {
                self.stats.accept_aborts += 1;
                Next::More
            }
            // The process or the machine has run out of something that will come back, or accepting is forbidden:
            // asking again at once would spin.
            Err(_) => {
                let retry = listener.retry_ms;
                listener.retry_ms = (retry * 2).min(ACCEPT_RETRY_MS.1);
                self.wheel.set(token.index(), self.mailbox.clock().now() + retry);
                self.stats.accept_backoffs += 1;
                Next::Stop
            }
        }
    }
}
