//! The unwritten end of a block.

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::block::Block;
use super::slice::Slice;

/// The one owner of a block's unwritten end. Writing moves the boundary: the written front becomes a [`Slice`],
/// the rest stays here.
pub struct Tail {
    block: Block,
    /// Bytes of the block that are written, or skipped; the tail begins here.
    start: usize,
}

impl Tail {
    pub(super) fn new(block: Block) -> Tail {
        Tail { block, start: 0 }
    }

    /// Bytes that can still be written.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.block.capacity() - self.start
    }

    /// Size of the whole block, in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.block.capacity()
    }

    /// Where the next byte goes.
    #[inline]
    pub fn as_ptr(&self) -> NonNull<u8> {
        // SAFETY: `start` never exceeds the capacity.
        unsafe { self.block.data().add(self.start) }
    }

    /// The unwritten bytes.
    #[inline]
    pub fn spare_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let len = self.remaining();
        // SAFETY: the tail is the one owner of the range, for as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().cast().as_ptr(), len) }
    }

    /// Turns the first `n` unwritten bytes into a slice.
    ///
    /// # Safety
    /// - `n <= self.remaining()`.
    /// - The first `n` bytes of [`spare_mut`](Tail::spare_mut) are initialised, and nobody writes to them any more.
    #[inline]
    pub unsafe fn commit(&mut self, n: usize) -> Slice {
        debug_assert!(n <= self.remaining());
        if n == 0 {
            // A slice of nothing must not keep the block.
            return Slice::empty();
        }
        let ptr = self.as_ptr();
        self.start += n;
        Slice::of_block(ptr, n, self.block.clone())
    }

    /// Like [`commit`](Tail::commit), but gives the bytes to `slice`, which ends where the tail began.
    ///
    /// # Safety
    /// As for `commit`, and [`touches`](Tail::touches) holds for `slice`.
    #[inline]
    pub(crate) unsafe fn commit_onto(&mut self, n: usize, slice: &mut Slice) {
        debug_assert!(n <= self.remaining() && self.touches(slice));
        self.start += n;
        // SAFETY: the bytes behind the slice belong to the same block, are initialised, and are no longer the
        // tail's.
        unsafe { slice.grow(n) };
    }

    /// Gives the first `n` unwritten bytes up, at most all of them: they are nobody's until the block is used again.
    #[inline]
    pub fn skip(&mut self, n: usize) {
        self.start += n.min(self.remaining());
    }

    /// Copies `bytes` in, and gives them as a slice. At most [`remaining`](Tail::remaining) are taken.
    pub fn write(&mut self, bytes: &[u8]) -> Slice {
        let n = self.fill(bytes);
        // SAFETY: `fill` initialised n bytes.
        unsafe { self.commit(n) }
    }

    /// Copies what fits into the unwritten bytes, without committing it; returns how much.
    #[inline]
    pub(crate) fn fill(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.remaining());
        // SAFETY: the tail owns `n` writable bytes from its start on, which no reference to a slice can overlap.
        unsafe { self.as_ptr().copy_from_nonoverlapping(NonNull::from(bytes).cast(), n) };
        n
    }

    /// Whether `slice` ends exactly where the tail begins, in the same block.
    #[inline]
    pub(crate) fn touches(&self, slice: &Slice) -> bool {
        slice.block().is_some_and(|block| block.is(&self.block)) && slice.end() == self.as_ptr()
    }

    /// If no slice of the block is left, makes the whole block writable again. Says whether it is.
    #[inline]
    pub fn rewind(&mut self) -> bool {
        let unique = self.block.is_unique();
        if unique {
            self.block.payload().written();
            self.start = 0;
        }
        unique
    }

    /// Whether slices of the block are left.
    pub fn is_shared(&self) -> bool {
        !self.block.is_unique()
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail")
            .field("capacity", &self.capacity())
            .field("remaining", &self.remaining())
            .finish()
    }
}
