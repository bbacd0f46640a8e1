//! One refcounted allocation: a header, then the bytes.

use std::ptr::NonNull;

use super::pool::PoolInner;
use super::region::Region;
use crate::sync::{Arc, AtomicUsize, Ordering, Witness, fence};

/// A reference to a block. Clone and drop count; the last one hands the block back to its pool.
pub(super) struct Block {
    header: NonNull<Header>,
}

/// What precedes the bytes while references exist. A cache line of its own, so that counting never touches the
/// payload.
#[repr(C, align(64))]
struct Header {
    refs: AtomicUsize,
    capacity: usize,
    /// The pool to return to, which lives as long as one of its blocks is in use.
    home: Arc<PoolInner>,
    region: NonNull<Region>,
    /// The payload, as far as a model of the threads is concerned.
    payload: Witness,
}

// SAFETY: a reference gives access to the counter, which is atomic, and to fields that do not change while
// references exist; the payload is governed by `Slice` and `Tail`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    #[inline]
    pub(super) fn capacity(&self) -> usize {
        // SAFETY: `self` keeps the header alive, and the capacity never changes.
        unsafe { (*self.header.as_ptr()).capacity }
    }

    /// The first byte of the payload.
    #[inline]
    pub(super) fn data(&self) -> NonNull<u8> {
        // SAFETY: the block has its header's size before the payload.
        unsafe { self.header.cast::<u8>().add(FreeBlock::HEADER_BYTES) }
    }

    /// Whether this is the only reference. If so, no other thread can make a second one meanwhile.
    #[inline]
    pub(super) fn is_unique(&self) -> bool {
        // Acquire: pairs with the release in `drop`, so that the reads of those who left happened before.
        self.refs().load(Ordering::Acquire) == 1
    }

    #[inline]
    pub(super) fn is(&self, other: &Block) -> bool {
        self.header == other.header
    }

    #[inline]
    fn refs(&self) -> &AtomicUsize {
        // SAFETY: `self` keeps the header alive.
        unsafe { &(*self.header.as_ptr()).refs }
    }

    #[inline]
    pub(super) fn payload(&self) -> &Witness {
        // SAFETY: `self` keeps the header alive.
        unsafe { &(*self.header.as_ptr()).payload }
    }
}

impl Clone for Block {
    #[inline]
    fn clone(&self) -> Block {
        // Relaxed: a new reference is made from an existing one, which keeps the block alive. A count that
        // overflows needs 2^64 live references, each of which occupies memory; those leaked with `mem::forget`
        // would need centuries.
        self.refs().fetch_add(1, Ordering::Relaxed);
        Block { header: self.header }
    }
}

impl Drop for Block {
    #[inline]
    fn drop(&mut self) {
        if self.refs().fetch_sub(1, Ordering::Release) == 1 {
            self.give_back();
        }
    }
}

impl Block {
    /// After the last reference was dropped.
    #[inline(never)]
    fn give_back(&mut self) {
        // Acquire: what the others did with the block happened before it is used again.
        fence(Ordering::Acquire);
        // SAFETY: nobody else looks at the header any more, and it is not looked at again.
        let header = unsafe { self.header.read() };
        header.payload.written();
        header.home.take_back(FreeBlock::new(self.header.cast(), header.region), header.capacity);
    }
}

/// A block nobody refers to. Its header does not exist; the same bytes hold the link to the next free block.
pub(super) struct FreeBlock {
    memory: NonNull<u8>,
    region: NonNull<Region>,
}

impl FreeBlock {
    /// Bytes before the payload.
    pub(super) const HEADER_BYTES: usize = size_of::<Header>();

    pub(super) fn new(memory: NonNull<u8>, region: NonNull<Region>) -> FreeBlock {
        FreeBlock { memory, region }
    }

    pub(super) fn region(&self) -> NonNull<Region> {
        self.region
    }

    /// The free block that was linked behind this one.
    ///
    /// # Safety
    /// [`set_next`](FreeBlock::set_next) was called, and the block was not used since.
    pub(super) unsafe fn next(&self) -> Option<FreeBlock> {
        // SAFETY: promised by the caller.
        let next = unsafe { self.memory.cast::<Option<NonNull<u8>>>().read() };
        next.map(|memory| FreeBlock { memory, region: self.region })
    }

    /// # Safety
    /// Nobody uses the block, and `next` is of the same region.
    pub(super) unsafe fn set_next(&self, next: Option<FreeBlock>) {
        let next = next.map(|block| block.memory);
        // SAFETY: promised by the caller; the header's room is large enough and aligned.
        unsafe { self.memory.cast().write(next) };
    }

    /// Makes the first reference.
    pub(super) fn into_block(self, capacity: usize, home: Arc<PoolInner>) -> Block {
        let header = self.memory.cast::<Header>();
        let refs = AtomicUsize::new(1);
        let payload = Witness::default();
        // SAFETY: a free block has no other owner, and room for a header before its payload.
        unsafe { header.write(Header { refs, capacity, home, region: self.region, payload }) };
        Block { header }
    }
}
