//! The memory of sends without a copy.
//!
//! The kernel goes on reading from the memory of such a send after it has taken its bytes: until the peer has
//! acknowledged them and the last device is done. Then it gives notice. Until then the slices are kept here, so that their
//! blocks are not written anew.
//!
//! Of a connection that was reset no notice may come: epoll's come through the socket, which is closed. Nothing is sent
//! again then, and what a device still has it is done with within a minute, when the memory is given back. Of a socket that
//! lives on elsewhere, and of a poller that ends, it is leaked.

use std::collections::{HashMap, VecDeque};
use std::mem;

use crate::buffer::Chain;
use crate::timer::Tick;
use crate::token::Token;

/// The most that the connections of a poller have with the kernel at once, unless it is said.
const PINNED_BYTES_MAX: usize = 64 << 20;

/// Notices in a row that say that the kernel has copied, until it is believed: over a device that takes memory as it is,
/// io_uring says so of a few sends in a thousand.
const COPIED_MAX: u8 = 4;

/// For how long the memory of a connection that was reset is kept, in milliseconds.
const RESET_MS: Tick = 60_000;

/// What the connections of a poller have with the kernel.
pub(super) struct Pinned {
    pub(super) bytes: usize,
    pub(super) bytes_max: usize,
    /// Sends of connections that are gone.
    orphans: HashMap<Token, Orphans>,
    /// The earliest time at which some of them are given back; `Tick::MAX` if none will be.
    due: Tick,
}

/// The sends of a connection that is gone, and when they are given back without a notice.
struct Orphans {
    sends: Sends,
    due: Tick,
}

/// The sends of one connection.
#[derive(Default)]
pub(super) struct Sends {
    /// In the order of their numbers, without gaps. A range may be given back before those in front of it.
    sends: VecDeque<Send>,
    /// The number of the first. The kernel counts from 0 and wraps.
    first: u32,
    pub(super) pinned_bytes: usize,
    pub(super) mode: Mode,
    /// Notices in a row that said that the kernel has copied.
    copied: u8,
}

/// The memory of a send; no bytes once the kernel has given it back.
#[derive(Default)]
struct Send {
    #[expect(dead_code, reason = "it is there to be kept")]
    slices: Chain,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
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
    pub(super) fn pin(&mut self, slices: Chain) {
        let bytes = slices.len();
        self.pinned_bytes += bytes;
        self.sends.push_back(Send { slices, bytes });
    }

    /// May be tried once more.
    pub(super) fn retry(&mut self) {
        (self.mode, self.copied) = (Mode::On, 0);
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

    /// A notice has come. Returns the bytes that it gave back.
    pub(super) fn notice(&mut self, first: u32, last: u32, copied: bool) -> usize {
        let bytes = self.release(first, last);
        self.copied = if copied { self.copied.saturating_add(1) } else { 0 };
        if self.copied >= COPIED_MAX {
            self.mode = Mode::Off;
        } else if self.mode == Mode::Suspended {
            self.mode = Mode::On;
        }
        bytes
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

impl Default for Pinned {
    fn default() -> Pinned {
        Pinned { bytes: 0, bytes_max: PINNED_BYTES_MAX, orphans: HashMap::new(), due: Tick::MAX }
    }
}

impl Pinned {
    /// Keeps what the kernel reads from while the connection is gone; `reset`: no notice need come.
    pub(super) fn adopt(&mut self, token: Token, sends: Sends, reset: bool, now: Tick) {
        let due = if reset { now + RESET_MS } else { Tick::MAX };
        self.due = self.due.min(due);
        self.orphans.insert(token, Orphans { sends, due });
    }

    /// A notice for a connection that is gone. Returns the bytes that it gave back; none if nothing is known of it.
    pub(super) fn notice(
        &mut self,
        token: Token,
        first: u32,
        last: u32,
        copied: bool,
    ) -> Option<usize> {
        let orphans = self.orphans.get_mut(&token)?;
        let bytes = orphans.sends.notice(first, last, copied);
        if orphans.sends.is_empty() {
            self.orphans.remove(&token);
            self.due = self.next_due();
        }
        Some(bytes)
    }

    /// When [`give_back`](Pinned::give_back) is to be called.
    pub(super) fn due(&self) -> Option<Tick> {
        (self.due != Tick::MAX).then_some(self.due)
    }

    /// Gives back what no notice will come for.
    pub(super) fn give_back(&mut self, now: Tick) {
        if now < self.due {
            return;
        }
        let mut bytes = 0;
        self.orphans.retain(|_, orphans| {
            let due = orphans.due <= now;
            if due {
                bytes += mem::take(&mut orphans.sends.pinned_bytes);
            }
            !due
        });
        self.bytes -= bytes;
        self.due = self.next_due();
    }

    fn next_due(&self) -> Tick {
        self.orphans.values().map(|orphans| orphans.due).min().unwrap_or(Tick::MAX)
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
    fn what_a_reset_has_left_is_given_back_after_a_minute() {
        let mut pinned = Pinned::default();
        for (index, reset) in [(0, true), (1, false), (2, true)] {
            let mut sends = Sends::default();
            sends.pin(chain(100));
            pinned.bytes += 100;
            pinned.adopt(Token::new(index, 0), sends, reset, 1_000);
        }
        assert_eq!(pinned.notice(Token::new(2, 0), 0, 0, false), Some(100));
        pinned.bytes -= 100;
        assert_eq!(pinned.due(), Some(61_000));
        pinned.give_back(60_999);
        assert_eq!(pinned.bytes, 200);
        pinned.give_back(61_000);
        assert_eq!((pinned.bytes, pinned.due(), pinned.orphans.len()), (100, None, 1));
        assert_eq!(pinned.notice(Token::new(0, 0), 0, 0, false), None);
        assert_eq!(pinned.notice(Token::new(1, 0), 0, 0, false), Some(100));
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
