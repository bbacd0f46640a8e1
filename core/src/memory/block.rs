//! One refcounted allocation: a header, then the bytes.

use std::ptr::NonNull;

use super::mapping::{FreeBlock, HEADER_BYTES, Mapping};
use super::store::Store;
use crate::sync::{Arc, AtomicUsize, Ordering, Witness, acquire};

/// A reference to a block. Clone and drop count; the last one hands the block back to its pool.
pub(super) struct Block {
    header: NonNull<Header>,
}

/// What precedes the bytes while references exist. A cache line of its own, so that counting never touches the
/// payload. Nothing but the count changes meanwhile, so it is read without a lock.
#[repr(C, align(64))]
struct Header {
    refs: AtomicUsize,
    capacity: usize,
    /// Where to return to, which lives as long as one of its blocks is in use.
    home: Arc<Store>,
    /// Where the block lies. Others change what is there, under a lock that its home knows.
    mapping: NonNull<Mapping>,
    /// The payload, as far as a model of the threads is concerned.
    payload: Witness,
}

const _: () =
    assert!(size_of::<Header>() <= HEADER_BYTES && HEADER_BYTES % align_of::<Header>() == 0);

// SAFETY: a reference gives access to the counter, which is atomic, and to fields that do not change while
// references exist; the payload is governed by `Slice` and `Tail`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Makes the first reference to a block of `capacity` bytes that was taken from `home`.
    pub(super) fn new(free: FreeBlock, capacity: usize, home: Arc<Store>) -> Block {
        let FreeBlock { memory, mapping } = free;
        let header = memory.cast::<Header>();
        let refs = AtomicUsize::new(1);
        let payload = Witness::default();
        // SAFETY: a free block has no other owner, and room for a header before its payload.
        unsafe { header.write(Header { refs, capacity, home, mapping, payload }) };
        Block { header }
    }

    #[inline]
    pub(super) fn capacity(&self) -> usize {
        // SAFETY: `self` keeps the header alive, and the capacity never changes.
        unsafe { (*self.header.as_ptr()).capacity }
    }

    /// The first byte of the payload.
    #[inline]
    pub(super) fn data(&self) -> NonNull<u8> {
        // SAFETY: the block has its header's size before the payload.
        unsafe { self.header.cast::<u8>().add(HEADER_BYTES) }
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
        acquire(self.refs());
        // SAFETY: nobody else looks at the header any more, and it is not looked at again.
        let Header { capacity, home, mapping, payload, .. } = unsafe { self.header.read() };
        payload.written();
        // SAFETY: it was taken from there with this capacity, and nobody refers to it any more.
        unsafe { home.take_back(FreeBlock { memory: self.header.cast(), mapping }, capacity) };
    }
}
