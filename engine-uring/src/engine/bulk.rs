//! Streams that carry large messages: received from by system calls, a few in a turn.
//!
//! The kernel receives for all sockets that have something before it returns. What it has received first is out of the cache when it is
//! handled, if it was large: so sockets that bring much beside each other are polled instead, and received from one after the other.
//! A turn ends when enough has come, and what it was answered with is sent while it is warm.

use std::mem;

#[cfg(duopoll_faults)]
use duopoll_core::faults;
use duopoll_core::{Inputs, Lease, Operators, Token};

use super::submit::NO_VECTOR;
use super::{Uring, saturating};
use crate::sys;

/// Bytes from which on what comes at once counts as large, in however many buffers.
pub(super) const LARGE_BYTES: usize = 48 << 10;
/// Bytes that sockets may bring in one turn before large ones are polled; what ends a turn of those that are.
const TURN_BYTES: usize = 64 << 10;
/// Bytes received from one of them in a turn before others get theirs.
const BUDGET_BYTES: usize = 512 << 10;
/// Small receives in a row after which the kernel receives by itself again.
const SMALL_MAX: u8 = 8;

impl Uring {
    /// So many bytes have come from a socket, which had no more of them if it is `emptied`. Says whether it is one of those to be
    /// polled from now on.
    pub(super) fn weigh(&mut self, token: Token, received: usize, emptied: bool) -> bool {
        self.turn_bytes += received;
        // Those of one receive follow each other.
        let before = if self.run.0 == Some(token) { self.run.1 } else { 0 };
        let run = before + received;
        self.run = (Some(token), run);
        let is_much = self.turn_bytes > TURN_BYTES;
        let Some(socket) = self.sockets.get_mut(token) else { return false };
        if run < self.large_bytes {
            // Nothing at all says nothing.
            let is_small = emptied && received > 0;
            socket.bulk -= u8::from(is_small).min(socket.bulk);
        } else if is_much || socket.bulk > 0 {
            socket.bulk = SMALL_MAX;
        }
        socket.bulk > 0
    }

    /// One of them has something, or may have.
    pub(super) fn read_later(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(token) {
            if !mem::replace(&mut socket.read_listed, true) {
                self.to_read.push_back(token);
            }
        }
    }

    /// Receives from those that have something, from one at least, until it is enough for this turn.
    pub(super) fn read_some<O: Operators>(&mut self, operators: &mut O) {
        while let Some(token) = self.to_read.pop_front() {
            if let Some(socket) = self.sockets.get_mut(token) {
                socket.read_listed = false;
                self.read(token, operators);
                if self.turn_bytes >= TURN_BYTES {
                    return;
                }
            }
        }
    }

    fn read<O: Operators>(&mut self, token: Token, operators: &mut O) {
        let mut vectors = [NO_VECTOR; 2];
        let mut budget = BUDGET_BYTES;
        while let Some(socket) = self.sockets.get_mut(token) {
            if !socket.may_be_read() {
                return;
            }
            if budget == 0 {
                return self.read_later(token);
            }
            let fd = socket.fd;
            let Inputs::Vectors(count) = operators.inputs(token, Lease::UntilAck, &mut vectors)
            else {
                socket.stopped = true;
                return;
            };
            #[cfg(duopoll_faults)]
            let count = faults::shorten_inputs(&mut vectors[..count]);
            let vectors = &vectors[..count];
            socket.lent = saturating(vectors.iter().map(|vector| vector.iov_len).sum());
            self.stats.syscalls += 1;
            // SAFETY: the operators lend the vectors until the acknowledgement.
            let result = unsafe { sys::receive(fd, vectors) };
            budget = budget.saturating_sub(*result.as_ref().unwrap_or(&0));
            self.received(token, result, operators);
            if self.sockets.get_mut(token).is_some_and(|socket| !socket.readable) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
