//! The blocks a poller keeps at hand.
//!
//! A connection needs a block only while bytes are on their way. When its turn is over the block comes back here,
//! and the next connection gets it while its lines are in the cache: no lock, no atomic, no memory per connection.

use crate::buffer::BlockSource;
use crate::error::Error;
use crate::memory::{Pool, Tail};

/// Blocks kept at hand, at most.
const BLOCKS_MAX: usize = 64;
/// The largest block that is kept, in bytes; with `BLOCKS_MAX`, at most 4 MiB in all.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// How many of the blocks used last are looked at for one that fits.
const LOOKED_AT: usize = 4;

#[derive(Debug)]
pub(crate) struct Stash {
    spare: Vec<Tail>,
    /// The block that replies are being written into, one connection's after another's.
    written: Option<Tail>,
}

/// A block that replies are written into is left for the next writer while so many bytes remain.
const WRITTEN_BYTES_MIN: usize = 256;

impl Stash {
    pub(crate) const fn new() -> Stash {
        Stash { spare: Vec::new(), written: None }
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
        self.spare = Vec::new();
        self.written = None;
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
