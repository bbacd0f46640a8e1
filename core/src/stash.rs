//! The blocks a poller keeps at hand.
//!
//! A connection needs a block only while bytes are on their way. When its turn is over the block comes back here,
//! and the next connection gets it while its lines are in the cache: no lock, no atomic, no memory per connection.

use std::collections::VecDeque;

use crate::buffer::{BlockSource, COPY_BLOCK_BYTES, Chain};
use crate::error::Error;
use crate::memory::{Pool, Tail};

/// Blocks kept at hand, at most.
const BLOCKS_MAX: usize = 64;
/// The largest block that is kept, in bytes; with `BLOCKS_MAX`, at most 4 MiB in all.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Full blocks of copied messages that are looked at again, at most.
const FULL_MAX: usize = 32;
/// How many of the blocks used last are looked at for one that fits.
const LOOKED_AT: usize = 4;

#[derive(Debug)]
pub(crate) struct Stash {
    spare: Vec<Tail>,
    /// The block that small messages are being copied into, one connection's after another's.
    copied: Option<Tail>,
    /// Those that were full while somebody still referred to them, the oldest first.
    full: VecDeque<Tail>,
    /// The block that replies are being written into, one connection's after another's.
    written: Option<Tail>,
}

/// A block that replies are written into is left for the next writer while so many bytes remain.
const WRITTEN_BYTES_MIN: usize = 256;

impl Stash {
    pub(crate) const fn new() -> Stash {
        Stash { spare: Vec::new(), copied: None, full: VecDeque::new(), written: None }
    }

    /// Copies a small message to the end of `chain`. False if there is no memory.
    pub(crate) fn copy_in(&mut self, bytes: &[u8], chain: &mut Chain) -> bool {
        let fits = |tail: &mut Tail| {
            tail.remaining() >= bytes.len() || tail.rewind() && tail.remaining() >= bytes.len()
        };
        if !self.copied.as_mut().is_some_and(fits) {
            let Ok(block) = self.block_for_copies(bytes.len()) else { return false };
            if let Some(full) = self.copied.replace(block) {
                if self.full.len() == FULL_MAX {
                    self.full.pop_front();
                }
                self.full.push_back(full);
            }
        }
        if let Some(tail) = &mut self.copied {
            let n = tail.fill(bytes);
            // SAFETY: `fill` initialised n bytes.
            unsafe { chain.push_committed(tail, n) };
        }
        true
    }

    /// One that was full, if nobody refers to it any more: its lines are in the cache.
    fn block_for_copies(&mut self, min_bytes: usize) -> Result<Tail, Error> {
        if let Some(mut oldest) = self.full.pop_front() {
            if oldest.capacity() >= min_bytes && oldest.rewind() {
                return Ok(oldest);
            }
            self.full.push_back(oldest);
        }
        self.block(min_bytes.max(COPY_BLOCK_BYTES))
    }

    pub(crate) fn take_written(&mut self) -> Option<Tail> {
        let mut tail = self.written.take()?;
        tail.rewind();
        (tail.remaining() >= WRITTEN_BYTES_MIN).then_some(tail)
    }

    pub(crate) fn put_written(&mut self, tail: Tail) {
        if tail.capacity() <= BLOCK_BYTES_MAX {
            self.written = Some(tail);
        }
    }

    /// Keeps the block, if nobody else refers to it.
    pub(crate) fn put(&mut self, mut tail: Tail) {
        let room = self.spare.len() < BLOCKS_MAX && tail.capacity() <= BLOCK_BYTES_MAX;
        if room && tail.rewind() {
            self.spare.push(tail);
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Stash::new();
    }
}

impl BlockSource for Stash {
    fn block(&mut self, min_bytes: usize) -> Result<Tail, Error> {
        let fits = |tail: &Tail| tail.remaining() >= min_bytes && tail.capacity() / 4 <= min_bytes;
        let looked_at = self.spare.len().saturating_sub(LOOKED_AT);
        if let Some(at) = self.spare[looked_at..].iter().rposition(fits) {
            return Ok(self.spare.swap_remove(looked_at + at));
        }
        Pool::global().allocate(min_bytes)
    }
}
