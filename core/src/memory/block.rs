//! One refcounted allocation: a header, then the bytes.

use std::alloc::{self, Layout};
use std::ptr::NonNull;

use super::pool::PoolInner;
use crate::error::Error;
use crate::sync::{Arc, AtomicUsize, Ordering, fence};

/// A reference to a block. Clone and drop count; the last one hands the block back to its pool.
pub(super) struct Block {
    header: NonNull<Header>,
}

/// What precedes the bytes. A cache line of its own, so that counting never touches the payload.
#[repr(C, align(64))]
pub(super) struct Header {
    refs: AtomicUsize,
    capacity: usize,
    /// The pool to return to: `Some` while references exist, `None` while the block lies in a free list.
    home: Option<Arc<PoolInner>>,
    /// The next block of a free list; meaningful only while the block lies in one.
    next: Option<NonNull<Header>>,
}

/// A block nobody refers to: it lies in a free list, or is on its way there or to the allocator.
pub(super) struct FreeBlock(NonNull<Header>);

// SAFETY: a reference gives access to the counter, which is atomic, and to fields that do not change while
// references exist; the payload is governed by `Slice` and `Tail`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}
// SAFETY: a free block has no other owner.
unsafe impl Send for FreeBlock {}

/// Bytes before the payload.
const DATA_OFFSET: usize = size_of::<Header>();

fn layout(capacity: usize) -> Option<Layout> {
    let size = capacity.checked_add(DATA_OFFSET)?;
    Layout::from_size_align(size, align_of::<Header>()).ok()
}

impl Block {
    pub(super) fn capacity(&self) -> usize {
        // SAFETY: `self` keeps the header alive, and the capacity never changes.
        unsafe { (*self.header.as_ptr()).capacity }
    }

    /// The first byte of the payload.
    pub(super) fn data(&self) -> NonNull<u8> {
        // SAFETY: the allocation holds `DATA_OFFSET` bytes before the payload.
        unsafe { self.header.cast::<u8>().add(DATA_OFFSET) }
    }

    /// Whether this is the only reference. If so, no other thread can make a second one meanwhile.
    pub(super) fn is_unique(&self) -> bool {
        // Acquire: pairs with the release in `drop`, so that the reads of those who left happened before.
        self.refs().load(Ordering::Acquire) == 1
    }

    pub(super) fn is(&self, other: &Block) -> bool {
        self.header == other.header
    }

    fn refs(&self) -> &AtomicUsize {
        // SAFETY: `self` keeps the header alive.
        unsafe { &(*self.header.as_ptr()).refs }
    }
}

impl Clone for Block {
    fn clone(&self) -> Block {
        // Relaxed: a new reference is made from an existing one, which keeps the block alive. A count that
        // overflows needs 2^63 live references, each of which occupies memory, so it cannot happen.
        self.refs().fetch_add(1, Ordering::Relaxed);
        Block { header: self.header }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.refs().fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: that was the last reference, so nobody else looks at the header.
        let home = unsafe { (*self.header.as_ptr()).home.take() };
        let free = FreeBlock(self.header);
        match home {
            Some(pool) => pool.take_back(free),
            None => free.deallocate(),
        }
    }
}

impl FreeBlock {
    pub(super) fn allocate(capacity: usize) -> Result<FreeBlock, Error> {
        let no_memory = Error::OutOfMemory { bytes: capacity };
        let layout = layout(capacity).ok_or(no_memory)?;
        // SAFETY: the layout is not empty, since it includes the header.
        let raw = unsafe { alloc::alloc(layout) }.cast::<Header>();
        let header = NonNull::new(raw).ok_or(no_memory)?;
        // SAFETY: freshly allocated with the header's size and alignment.
        unsafe {
            header.write(Header { refs: AtomicUsize::new(0), capacity, home: None, next: None });
        }
        Ok(FreeBlock(header))
    }

    pub(super) fn deallocate(self) {
        // SAFETY: nobody refers to the block, and it was allocated with this very layout.
        unsafe {
            let capacity = (*self.0.as_ptr()).capacity;
            self.0.drop_in_place();
            if let Some(layout) = layout(capacity) {
                alloc::dealloc(self.0.as_ptr().cast(), layout);
            }
        }
    }

    pub(super) fn capacity(&self) -> usize {
        // SAFETY: `self` owns the header.
        unsafe { (*self.0.as_ptr()).capacity }
    }

    /// Makes the first reference.
    pub(super) fn into_block(self, home: Arc<PoolInner>) -> Block {
        // SAFETY: `self` owns the header.
        let header = unsafe { &mut *self.0.as_ptr() };
        header.home = Some(home);
        header.next = None;
        // Relaxed: whoever gets the reference gets it from this thread.
        header.refs.store(1, Ordering::Relaxed);
        Block { header: self.0 }
    }
}

/// A last-in first-out list of free blocks, linked through their headers: the block used last is the one whose
/// lines are still in the cache.
#[derive(Default)]
pub(super) struct FreeList {
    head: Option<NonNull<Header>>,
}

// SAFETY: the list owns its blocks.
unsafe impl Send for FreeList {}

impl FreeList {
    pub(super) fn push(&mut self, block: FreeBlock) {
        // SAFETY: the free block owns its header.
        unsafe { (*block.0.as_ptr()).next = self.head };
        self.head = Some(block.0);
    }

    pub(super) fn pop(&mut self) -> Option<FreeBlock> {
        let head = self.head?;
        // SAFETY: the list owns its headers.
        self.head = unsafe { (*head.as_ptr()).next };
        Some(FreeBlock(head))
    }
}

impl Drop for FreeList {
    fn drop(&mut self) {
        while let Some(block) = self.pop() {
            block.deallocate();
        }
    }
}
