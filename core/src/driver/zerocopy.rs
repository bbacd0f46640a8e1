//! Sends without a copy.
//!
//! The kernel goes on reading from the memory of such a send after it has taken its bytes: until the peer has
//! acknowledged them and the last device is done. Then it gives notice. Until then the slices are kept here, so that their
//! blocks are not written anew; if the notice can never come, they are leaked.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;

use libc::iovec;

use super::{Driver, Phase, Slot, Stream};
use crate::buffer::{Chain, IO_BYTES_MAX};
use crate::memory::Slice;
use crate::poll::{Next, Operators};
use crate::timer::Tick;
use crate::token::Token;

/// The most that the connections of a poller have with the kernel at once, unless it is said.
const PINNED_BYTES_MAX: usize = 64 << 20;

/// Notices in a row that say that the kernel has copied, until it is believed: over a device that takes memory as it is,
/// io_uring says so of a few sends in a thousand.
const COPIED_MAX: u8 = 4;

/// How long a connection that is to be detached waits for notices, in milliseconds.
const DETACH_MS: Tick = 1_000;

/// `ENOTSUPP`, an errno of the kernel's own that some sockets let out.
const ENOTSUPP: i32 = 524;

/// What the connections of a poller have with the kernel.
pub(super) struct ZeroCopies {
    pinned_bytes: usize,
    pinned_bytes_max: usize,
    /// Sends of connections that are gone.
    orphans: HashMap<Token, Sends>,
}

/// The sends of one connection.
#[derive(Default)]
pub(super) struct Sends {
    /// In the order of their numbers, without gaps. A range may be given back before those in front of it.
    sends: VecDeque<Pinned>,
    /// The number of the first. The kernel counts from 0 and wraps.
    first: u32,
    pinned_bytes: usize,
    mode: Mode,
    /// Notices in a row that said that the kernel has copied.
    copied: u8,
}

/// The memory of a send; no bytes once the kernel has given it back.
#[derive(Default)]
struct Pinned {
    #[expect(dead_code, reason = "it is there to be kept")]
    slices: Chain,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    On,
    /// The kernel was short of something: nothing more until it has given something back.
    Suspended,
    /// It cannot, or copies all the same.
    Off,
}

impl Sends {
    pub(super) fn is_empty(&self) -> bool {
        self.pinned_bytes == 0
    }

    /// Keeps the memory of the next send.
    fn pin(&mut self, slices: Chain) {
        let bytes = slices.len();
        self.pinned_bytes += bytes;
        self.sends.push_back(Pinned { slices, bytes });
    }

    /// The kernel has given some back. Returns their bytes.
    fn release(&mut self, first: u32, last: u32) -> usize {
        let start = first.wrapping_sub(self.first) as usize;
        let count = last.wrapping_sub(first) as usize + 1;
        let mut released = 0;
        for send in self.sends.iter_mut().skip(start).take(count) {
            released += mem::take(send).bytes;
        }
        while self.sends.front().is_some_and(|send| send.bytes == 0) {
            self.sends.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        self.pinned_bytes -= released;
        released
    }
}

impl Drop for Sends {
    fn drop(&mut self) {
        if !self.is_empty() {
            // The kernel may still read from them.
            mem::forget(mem::take(&mut self.sends));
        }
    }
}

impl Default for ZeroCopies {
    fn default() -> ZeroCopies {
        ZeroCopies { pinned_bytes: 0, pinned_bytes_max: PINNED_BYTES_MAX, orphans: HashMap::new() }
    }
}

impl ZeroCopies {
    pub(super) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes as u64
    }

    /// Keeps what the kernel reads from while the connection is gone.
    pub(super) fn adopt(&mut self, token: Token, stream: &mut Stream) {
        if let Some(sends) = stream.zero_copy.take_if(|sends| !sends.is_empty()) {
            self.orphans.insert(token, *sends);
        }
    }

    /// Describes what a stream is to send next. Slices from its threshold on go without a copy, where that is
    /// possible, and what is before and between them by itself. Returns how many vectors, how many bytes, and the flags for
    /// the send.
    pub(super) fn fill_vectors(
        &self,
        stream: &mut Stream,
        vectors: &mut [iovec],
    ) -> (usize, usize, i32) {
        let threshold = stream.shared.zerocopy_bytes();
        let room = if threshold.is_some() { self.room(stream) } else { 0 };
        let slices = &stream.sending;
        let Some(threshold) = threshold.filter(|threshold| room >= (*threshold).max(1)) else {
            let (count, bytes) = slices.fill_vectors(vectors);
            return (count, bytes, 0);
        };
        let is_large = |slice: &&Slice| slice.len() >= threshold;
        if slices.first().is_some_and(|first| is_large(&first)) {
            let large = slices.iter().take_while(is_large);
            let (count, bytes) = Chain::describe(large, vectors, room.min(IO_BYTES_MAX));
            // This is the try.
            stream.shared.retries_zerocopy();
            (count, bytes, libc::MSG_ZEROCOPY)
        } else {
            let small = slices.iter().take_while(|slice| !is_large(slice));
            let (count, bytes) = Chain::describe(small, vectors, IO_BYTES_MAX);
            // The first of what comes next goes into the same packet.
            let followed = slices.iter().nth(count).is_some_and(|next| is_large(&next));
            (count, bytes, if followed { libc::MSG_MORE } else { 0 })
        }
    }

    /// Bytes that a stream may send without a copy now.
    fn room(&self, stream: &mut Stream) -> usize {
        let mut own = stream.shared.zerocopy_pinned_bytes_max();
        if let Some(sends) = &mut stream.zero_copy {
            if sends.mode == Mode::Off && stream.shared.retries_zerocopy() {
                (sends.mode, sends.copied) = (Mode::On, 0);
            }
            if sends.mode != Mode::On {
                return 0;
            }
            own = own.saturating_sub(sends.pinned_bytes);
        }
        own.min(self.pinned_bytes_max.saturating_sub(self.pinned_bytes))
    }
}

impl Stream {
    /// Whether the kernel still reads from memory of this connection.
    pub(super) fn has_pinned(&self) -> bool {
        self.zero_copy.as_ref().is_some_and(|sends| !sends.is_empty())
    }

    fn sends(&mut self) -> &mut Sends {
        self.zero_copy.get_or_insert_default()
    }
}

impl Driver {
    /// The most bytes that the connections of this poller may have with the kernel for sends without a copy. What
    /// is beyond them is copied.
    pub fn limit_pinned(&mut self, bytes: usize) {
        self.zero_copies.pinned_bytes_max = bytes;
    }

    /// Whether a connection that is to be detached has to wait until the kernel reads no more from its memory: the
    /// notices would come to somebody who does not know of them.
    pub(super) fn waits_for_notices(&mut self, token: Token) -> bool {
        let due = self.now + DETACH_MS;
        let Some(stream) = self.stream(token) else { return false };
        if stream.phase != Phase::Open || !stream.has_pinned() {
            return false;
        }
        stream.phase = Phase::Leaving;
        self.open -= 1;
        self.wheel.set(token.index(), due);
        true
    }

    pub(super) fn acknowledge_zero_copy(
        &mut self,
        token: Token,
        result: io::Result<usize>,
    ) -> Next {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return Next::Stop };
        let refused = match &result {
            Ok(n) => {
                // References of its own: output_ack drops those of the stream.
                let slices = stream.sending.front(*n);
                self.zero_copies.pinned_bytes += slices.len();
                self.stats.zerocopy_sends += 1;
                stream.sends().pin(slices);
                None
            }
            Err(error) => match error.raw_os_error() {
                // A notice that is waited for takes memory of the socket (net.core.optmem_max), pinned pages some of the
                // process (RLIMIT_MEMLOCK). If nothing is waited for it will not get better.
                Some(libc::ENOBUFS | libc::ENOMEM) if stream.has_pinned() => Some(Mode::Suspended),
                Some(libc::ENOBUFS | libc::ENOMEM) => Some(Mode::Off),
                Some(libc::EOPNOTSUPP | ENOTSUPP | libc::EINVAL | libc::EPERM) => Some(Mode::Off),
                _ => None,
            },
        };
        match refused {
            None => self.output_ack(token, result),
            Some(mode) => {
                stream.sends().mode = mode;
                self.stats.zerocopy_fallbacks += 1;
                // Given back, and asked for again: then it goes as any other.
                self.output_ack(token, Err(io::ErrorKind::WouldBlock.into()))
            }
        }
    }

    pub(super) fn release_zero_copy(&mut self, token: Token, first: u32, last: u32, copied: bool) {
        let (sends, orphan) = match self.slots.get_mut(token) {
            Some(Slot::Stream(stream)) => (stream.zero_copy.as_deref_mut(), false),
            _ => (self.zero_copies.orphans.get_mut(&token), true),
        };
        let Some(sends) = sends else { return };
        let bytes = sends.release(first, last);
        let empty = sends.is_empty();
        sends.copied = if copied { sends.copied.saturating_add(1) } else { 0 };
        if sends.copied >= COPIED_MAX {
            sends.mode = Mode::Off;
        } else if sends.mode == Mode::Suspended {
            sends.mode = Mode::On;
        }
        self.zero_copies.pinned_bytes -= bytes;
        if copied {
            self.stats.zerocopy_copied_bytes += bytes as u64;
        } else {
            self.stats.zerocopy_bytes += bytes as u64;
        }
        if empty && orphan {
            self.zero_copies.orphans.remove(&token);
        } else if empty {
            // A closed connection may have waited for it.
            self.touch(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(bytes: usize) -> Chain {
        let mut chain = Chain::new();
        chain.push(vec![7; bytes].into());
        chain
    }

    #[test]
    fn ranges_come_in_any_order() {
        let mut sends = Sends::default();
        for bytes in 1..=5 {
            sends.pin(chain(bytes));
        }
        assert_eq!(sends.release(3, 3), 4);
        assert_eq!(sends.release(1, 2), 5);
        assert_eq!((sends.sends.len(), sends.first), (5, 0));
        assert_eq!(sends.release(0, 0), 1);
        assert_eq!((sends.sends.len(), sends.first), (1, 4));
        assert_eq!(sends.release(4, 4), 5);
        assert!(sends.is_empty() && sends.sends.is_empty());
    }

    #[test]
    fn numbers_wrap() {
        let mut sends = Sends::default();
        sends.first = u32::MAX - 1;
        for bytes in 1..=4 {
            sends.pin(chain(bytes));
        }
        assert_eq!(sends.release(u32::MAX, 1), 2 + 3 + 4);
        assert_eq!(sends.release(u32::MAX - 1, u32::MAX - 1), 1);
        assert_eq!((sends.first, sends.is_empty()), (2, true));
        sends.pin(chain(6));
        assert_eq!(sends.release(2, 2), 6);
    }

    #[test]
    fn what_was_never_sent_is_not_released() {
        let mut sends = Sends::default();
        sends.pin(chain(1));
        assert_eq!(sends.release(1, u32::MAX), 0);
        assert_eq!(sends.release(0, 9), 1);
        // Once.
        assert_eq!(sends.release(0, 0), 0);
        assert_eq!(sends.first, 1);
    }
}
