//! Where received bytes land: up to two writable vectors, sized by what arrived before.

use std::fmt;

use libc::iovec;

use super::chain::Chain;
use crate::error::Error;
use crate::memory::{BlockSource, Tail};

/// The writable end of a buffer that is filled from outside.
///
/// [`lend`](RecvBuffer::lend) describes where the next bytes may go: the rest of the current block, and a fresh block
/// behind it if little is left, so that a nearly full block never costs a short read. [`commit`](RecvBuffer::commit)
/// says how many came. A read that fills all it was given doubles the next block, and so do many bytes that wait to
/// be taken; many small reads halve it again.
#[derive(Default)]
pub struct RecvBuffer {
    tail: Option<Tail>,
    /// The fresh block behind the tail, while lent.
    next: Option<Tail>,
    sizing: Sizing,
}

/// Chooses the size of the next block: a power of two, kept as its exponent, since each connection has one of these.
#[derive(Clone, Copy)]
struct Sizing {
    /// Bytes in the vectors last lent.
    lent: u32,
    block: u8,
    block_min: u8,
    /// Reads in a row that would have fitted in a quarter of the block.
    small_reads: u8,
}

/// The first block of a connection, in bytes; also the smallest.
const BLOCK_BYTES_MIN: usize = 4 << 10;
/// The largest block that is asked for, unless the smallest is larger, in bytes.
const BLOCK_BYTES_MAX: usize = 512 << 10;
/// What is known to come is believed up to here, in bytes: whoever only announces it gets no more memory.
const AWAITED_BYTES_MAX: usize = 1 << 20;
/// The least block that copied bytes go into, in bytes.
const COPY_BLOCK_BYTES: usize = 4 << 10;
/// Small reads in a row before the size is halved.
const SMALL_READS_MAX: u8 = 16;

impl Default for Sizing {
    fn default() -> Sizing {
        Sizing::starting_with(BLOCK_BYTES_MIN)
    }
}

impl Sizing {
    fn starting_with(block_bytes: usize) -> Sizing {
        let block = block_bytes.max(1).next_power_of_two().trailing_zeros() as u8;
        Sizing { lent: 0, block, block_min: block, small_reads: 0 }
    }

    fn block_bytes(self) -> usize {
        1 << self.block
    }

    fn lends(&mut self, bytes: usize) {
        self.lent = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// `n` bytes came, and `waiting` bytes are in the chain now.
    fn saw(&mut self, n: usize, waiting: usize) {
        let block_bytes = self.block_bytes();
        if n == self.lent as usize || waiting >= 4 * block_bytes {
            if block_bytes < BLOCK_BYTES_MAX {
                self.block += 1;
            }
            self.small_reads = 0;
        } else if n <= block_bytes / 4 {
            self.small_reads += 1;
            if self.small_reads == SMALL_READS_MAX {
                self.block = self.block.saturating_sub(1).max(self.block_min);
                self.small_reads = 0;
            }
        } else {
            self.small_reads = 0;
        }
    }
}

impl RecvBuffer {
    /// A receive buffer whose first block, and smallest, has so many bytes, rounded up to a power of two.
    pub(crate) fn starting_with(block_bytes: usize) -> RecvBuffer {
        RecvBuffer { sizing: Sizing::starting_with(block_bytes), ..RecvBuffer::default() }
    }

    /// Describes where bytes may be written; returns how many vectors, 1 or 2. They stay valid until the next call on this
    /// receive buffer, and nothing else writes there. `awaited`: so many are known to come; `most`: a block has no more than so many,
    /// unless the smallest has.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no room and no block to be had; then nothing is lent.
    pub fn lend(
        &mut self,
        source: &mut impl BlockSource,
        awaited: usize,
        most: usize,
        vectors: &mut [iovec; 2],
    ) -> Result<usize, Error> {
        let wanted = self.sizing.block_bytes().max(awaited.min(AWAITED_BYTES_MAX));
        let wanted = wanted.min(most.max(BLOCK_BYTES_MIN));
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
        let mut lent = tail.remaining();
        if tail.remaining() >= wanted / 2 {
            self.sizing.lends(lent);
            return Ok(1);
        }
        let next = match &mut self.next {
            Some(next) => next,
            // A little room is better than none.
            none => match source.block(wanted) {
                Ok(block) => none.insert(block),
                Err(_) => {
                    self.sizing.lends(lent);
                    return Ok(1);
                }
            },
        };
        vectors[1] = vector(next);
        lent += next.remaining();
        self.sizing.lends(lent);
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

    /// Whether what comes next is expected to be small, and there is no block for it yet.
    pub(crate) fn expects_little(&self) -> bool {
        self.tail.is_none() && self.sizing.block == self.sizing.block_min
    }

    /// Lends what is somebody else's; [`saw`](RecvBuffer::saw) follows.
    pub(crate) fn lends(&mut self, bytes: usize) {
        self.sizing.lends(bytes);
    }

    /// `n` bytes came, and `waiting` wait to be taken.
    pub(crate) fn saw(&mut self, n: usize, waiting: usize) {
        self.sizing.saw(n, waiting);
    }

    /// Sees to it that the current block has room for `n` bytes, and gives the one that had none, if there was one. An
    /// error if there is no memory for another.
    pub(crate) fn make_room(
        &mut self,
        n: usize,
        source: &mut impl BlockSource,
    ) -> Result<Option<Tail>, Error> {
        if self.tail.as_ref().is_none_or(|tail| tail.remaining() < n) {
            let block = source.block(n.max(COPY_BLOCK_BYTES))?;
            return Ok(self.tail.replace(block));
        }
        Ok(None)
    }

    /// Copies what the current block has room for into it, and to the end of `chain`.
    pub(crate) fn copy_in(&mut self, bytes: &[u8], chain: &mut Chain) {
        let Some(tail) = &mut self.tail else { return };
        let n = tail.fill(bytes);
        // SAFETY: `fill` initialised n bytes.
        unsafe { chain.push_committed(tail, n) };
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

/// All that can still be written of a block.
pub(crate) fn vector(tail: &Tail) -> iovec {
    iovec { iov_base: tail.as_ptr().cast().as_ptr(), iov_len: tail.remaining() }
}

impl fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBuffer")
            .field("tail", &self.tail)
            .field("block_bytes", &self.sizing.block_bytes())
            .finish_non_exhaustive()
    }
}
