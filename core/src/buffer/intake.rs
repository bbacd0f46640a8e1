//! Where received bytes land: up to two writable vectors, sized by what arrived before.

use std::fmt;

use libc::iovec;

use super::chain::Chain;
use crate::error::Error;
use crate::memory::{Pool, Tail};

/// Gives empty blocks.
pub trait BlockSource {
    /// An empty block of at least `min_bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is none.
    fn block(&mut self, min_bytes: usize) -> Result<Tail, Error>;
}

impl BlockSource for &Pool {
    fn block(&mut self, min_bytes: usize) -> Result<Tail, Error> {
        self.allocate(min_bytes)
    }
}

/// The writable end of a buffer that is filled from outside.
///
/// [`lend`](Intake::lend) describes where the next bytes may go: the rest of the current block, and a fresh block
/// behind it if little is left, so that a nearly full block never costs a short read. [`commit`](Intake::commit)
/// says how many came. A read that fills all it was given doubles the next block, and so do many bytes that wait to
/// be taken; many small reads halve it again.
#[derive(Default)]
pub struct Intake {
    tail: Option<Tail>,
    /// The fresh block behind the tail, while lent.
    next: Option<Tail>,
    sizing: Sizing,
}

/// Chooses the size of the next block.
#[derive(Clone, Copy)]
struct Sizing {
    block_bytes: u32,
    block_bytes_min: u32,
    /// Bytes in the vectors last lent.
    lent: usize,
    /// Reads in a row that would have fitted in a quarter of the block.
    small_reads: u8,
}

/// The first block of a connection, in bytes; also the smallest.
const BLOCK_BYTES_MIN: u32 = 4 << 10;
/// The largest block that is asked for, in bytes.
const BLOCK_BYTES_MAX: u32 = 512 << 10;
/// Small reads in a row before the size is halved.
const SMALL_READS_MAX: u8 = 16;

impl Default for Sizing {
    fn default() -> Sizing {
        Sizing::starting_with(BLOCK_BYTES_MIN)
    }
}

impl Sizing {
    fn starting_with(block_bytes: u32) -> Sizing {
        Sizing { block_bytes, block_bytes_min: block_bytes, lent: 0, small_reads: 0 }
    }

    /// `n` bytes came, and `waiting` bytes are in the chain now.
    fn saw(&mut self, n: usize, waiting: usize) {
        let block_bytes = self.block_bytes as usize;
        if n == self.lent || waiting >= 4 * block_bytes {
            let larger = (self.block_bytes * 2).min(BLOCK_BYTES_MAX);
            self.block_bytes = self.block_bytes.max(larger);
            self.small_reads = 0;
        } else if n <= block_bytes / 4 {
            self.small_reads += 1;
            if self.small_reads == SMALL_READS_MAX {
                self.block_bytes = (self.block_bytes / 2).max(self.block_bytes_min);
                self.small_reads = 0;
            }
        } else {
            self.small_reads = 0;
        }
    }
}

impl Intake {
    /// An intake whose first block, and smallest, has so many bytes.
    pub(crate) fn starting_with(block_bytes: usize) -> Intake {
        let block_bytes = u32::try_from(block_bytes).unwrap_or(BLOCK_BYTES_MAX);
        Intake { sizing: Sizing::starting_with(block_bytes), ..Intake::default() }
    }

    /// Describes where bytes may be written; returns how many vectors, 1 or 2. They stay valid until the next call
    /// on this intake, and nothing else writes there.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no room and no block to be had; then nothing is lent.
    pub fn lend(
        &mut self,
        source: &mut impl BlockSource,
        vectors: &mut [iovec; 2],
    ) -> Result<usize, Error> {
        let wanted = self.sizing.block_bytes as usize;
        if let Some(tail) = &mut self.tail {
            if tail.remaining() < wanted / 2 {
                // If all of its bytes are gone, the whole block can be lent again.
                tail.rewind();
            }
        }
        let tail = match &mut self.tail {
            Some(tail) if tail.remaining() > 0 => tail,
            empty => empty.insert(source.block(wanted)?),
        };
        vectors[0] = vector(tail);
        self.sizing.lent = tail.remaining();
        if tail.remaining() >= wanted / 2 {
            return Ok(1);
        }
        let next = match &mut self.next {
            Some(next) => next,
            // A little room is better than none.
            none => match source.block(wanted) {
                Ok(block) => none.insert(block),
                Err(_) => return Ok(1),
            },
        };
        vectors[1] = vector(next);
        self.sizing.lent += next.remaining();
        Ok(2)
    }

    /// Moves the first `n` bytes of what was lent to the end of `chain`.
    ///
    /// # Safety
    /// - `n` is at most the total of the vectors last lent, and nothing was committed since.
    /// - The first `n` bytes of the vectors are initialised, and nobody writes to them any more.
    pub unsafe fn commit(&mut self, n: usize, chain: &mut Chain) {
        let Some(tail) = &mut self.tail else { return };
        let first = tail.remaining();
        debug_assert!(n <= first + self.next.as_ref().map_or(0, Tail::remaining));
        // SAFETY: promised by the caller; the tail takes its own share.
        unsafe { chain.push_committed(tail, n.min(first)) };
        if n >= first {
            self.tail = self.next.take();
        }
        if let (Some(tail), true) = (&mut self.tail, n > first) {
            // SAFETY: promised by the caller; the rest went to the second vector.
            unsafe { chain.push_committed(tail, n - first) };
        }
        self.sizing.saw(n, chain.len());
    }

    /// The current block, to write into or to give back.
    #[inline]
    pub fn tail_mut(&mut self) -> &mut Option<Tail> {
        &mut self.tail
    }

    /// The current block.
    #[inline]
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    /// The fresh block that was lent and not used, to give back.
    pub fn take_unused(&mut self) -> Option<Tail> {
        self.next.take()
    }
}

fn vector(tail: &Tail) -> iovec {
    iovec { iov_base: tail.as_ptr().cast().as_ptr(), iov_len: tail.remaining() }
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake")
            .field("tail", &self.tail)
            .field("block_bytes", &self.sizing.block_bytes)
            .finish_non_exhaustive()
    }
}
