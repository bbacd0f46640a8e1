//! Sends without a copy: which pieces go that way, and what the kernel says of them.

use std::io;

use libc::iovec;

use super::Driver;
use super::pinned::{Mode, Sends};
use super::slot::Slot;
use super::stream::Stream;
use crate::buffer::{Chain, IO_BYTES_MAX};
use crate::memory::Slice;
use crate::poll::{Next, Operators};
use crate::token::Token;

/// `ENOTSUPP`, an errno of the kernel's own that some sockets let out.
const ENOTSUPP: i32 = 524;

impl Driver {
    /// The most bytes that the connections of this poller may have with the kernel for sends without a copy. What
    /// is beyond them is copied.
    pub fn limit_pinned(&mut self, bytes: usize) {
        self.pinned.bytes_max = bytes;
    }

    /// Keeps what the kernel reads from while the connection is gone.
    pub(super) fn adopt_zero_copy(&mut self, token: Token, stream: &mut Stream) {
        if let Some(sends) = stream.zero_copy.take_if(|sends| !sends.is_empty()) {
            let now = self.mailbox.clock().now();
            self.pinned.adopt(token, *sends, stream.reset, now);
        }
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
                self.pinned.bytes += slices.len();
                self.stats.zerocopy_sends += 1;
                sends_of(stream).pin(slices);
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
                sends_of(stream).mode = mode;
                self.stats.zerocopy_fallbacks += 1;
                // Given back, and asked for again: then it goes as any other.
                self.output_ack(token, Err(io::ErrorKind::WouldBlock.into()))
            }
        }
    }

    pub(super) fn release_zero_copy(&mut self, token: Token, first: u32, last: u32, copied: bool) {
        let bytes = match self.slots.get_mut(token) {
            Some(Slot::Stream(Stream { zero_copy: Some(sends), .. })) => {
                let bytes = sends.notice(first, last, copied);
                if sends.is_empty() {
                    // A closed connection may have waited for it.
                    self.touch(token);
                }
                bytes
            }
            _ => match self.pinned.notice(token, first, last, copied) {
                Some(bytes) => bytes,
                None => return,
            },
        };
        self.pinned.bytes -= bytes;
        if copied {
            self.stats.zerocopy_copied_bytes += bytes as u64;
        } else {
            self.stats.zerocopy_bytes += bytes as u64;
        }
    }
}

fn sends_of(stream: &mut Stream) -> &mut Sends {
    stream.zero_copy.get_or_insert_default()
}

/// Describes what a stream is to send next. Slices from its threshold on go without a copy, where that is
/// possible, and what is before and between them by itself. `left`: bytes that its poller may still pin. Returns how many
/// vectors, how many bytes, and the flags for the send.
pub(super) fn fill_vectors(
    stream: &mut Stream,
    left: usize,
    vectors: &mut [iovec],
) -> (usize, usize, i32) {
    let threshold = stream.shared.zerocopy_bytes();
    let room = if threshold.is_some() { room(stream, left) } else { 0 };
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
fn room(stream: &mut Stream, left: usize) -> usize {
    let mut own = stream.shared.zerocopy_pinned_bytes_max();
    if let Some(sends) = &mut stream.zero_copy {
        if sends.mode == Mode::Off && stream.shared.retries_zerocopy() {
            sends.retry();
        }
        if sends.mode != Mode::On {
            return 0;
        }
        own = own.saturating_sub(sends.pinned_bytes);
    }
    own.min(left)
}
