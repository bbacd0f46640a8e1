//! Where blocks come from: regions, mapped from the kernel and unmapped again when no block of theirs is in use.
//!
//! ```text
//!  ┌────────┬────────┬───────────────┬────────┬───────────────┬┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┐
//!  │ Region │ header │ payload       │ header │ payload       │ not carved yet ┊
//!  └────────┴────────┴───────────────┴────────┴───────────────┴┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘
//! ```
//!
//! A region holds blocks of one size: as many as fit for small ones, one for large ones. The heap is not used for
//! blocks, since it gives little back after a burst: of 1 GiB in blocks of 4 KiB to 512 KiB, glibc kept 1 GiB, for
//! it only returns what lies above the highest block that is still in use, and a pool always keeps some.

use std::ptr::NonNull;

use super::block::FreeBlock;
use crate::error::Error;

/// What a region begins with. A cache line, so that the blocks behind it are aligned.
#[repr(C, align(64))]
pub(super) struct Region {
    /// Size of the mapping.
    bytes: usize,
    /// Payload of each block.
    capacity: usize,
    /// How many blocks there is room for, how many were ever given out, and how many are now.
    blocks: u32,
    carved: u32,
    used: u32,
    /// The size class, for the pool.
    pub(super) class: Option<u8>,
    /// Blocks that were given out before and are free: the one used last comes first, for its lines are cached.
    free: Option<FreeBlock>,
    /// Neighbours in a list of the shelf.
    previous: Option<NonNull<Region>>,
    next: Option<NonNull<Region>>,
}

/// Room for several small blocks, in bytes: 63 blocks of 4 KiB with their headers fill it to the last byte.
const SHARED_BYTES: usize = 256 << 10;
/// The largest block that shares a region, in bytes.
const SHARED_BLOCK_BYTES_MAX: usize = 32 << 10;
/// A sanitizer sees no use after free inside a region, so fuzzing gives each block a region of its own.
const SHARED: bool = cfg!(not(fuzzing));

const PAGE_BYTES: usize = 4 << 10;

impl Region {
    /// A region for blocks of at least `capacity` bytes: of exactly so many if they belong to a class.
    pub(super) fn new(capacity: usize, class: Option<u8>) -> Result<NonNull<Region>, Error> {
        let no_memory = Error::OutOfMemory { bytes: capacity };
        let block = capacity.checked_add(FreeBlock::HEADER_BYTES).ok_or(no_memory)?;
        let shared = SHARED && class.is_some() && capacity <= SHARED_BLOCK_BYTES_MAX;
        let bytes = if shared {
            SHARED_BYTES
        } else {
            let bytes = block.checked_add(size_of::<Region>()).ok_or(no_memory)?;
            bytes.checked_next_multiple_of(PAGE_BYTES).ok_or(no_memory)?
        };
        let room = bytes - size_of::<Region>();
        let blocks = if shared { (room / block) as u32 } else { 1 };
        // A block of no class may as well use the last page to its end.
        let capacity = if class.is_some() { capacity } else { room - FreeBlock::HEADER_BYTES };
        let region = source::map(bytes).ok_or(no_memory)?.cast::<Region>();
        let header = Region {
            bytes,
            capacity,
            blocks,
            carved: 0,
            used: 0,
            class,
            free: None,
            previous: None,
            next: None,
        };
        // SAFETY: freshly mapped, page-aligned, and larger than the header.
        unsafe { region.write(header) };
        Ok(region)
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The region comes from [`Region::new`], none of its blocks is in use, and nobody looks at it again.
    pub(super) unsafe fn unmap(region: NonNull<Region>) {
        // SAFETY: promised by the caller. Free blocks hold nothing that needs dropping.
        unsafe { source::unmap(region.cast(), (*region.as_ptr()).bytes) };
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes in blocks that were given out before and are free.
    pub(super) fn waiting_bytes(&self) -> usize {
        (self.carved - self.used) as usize * self.capacity
    }

    fn is_full(&self) -> bool {
        self.used == self.blocks
    }

    fn is_vacant(&self) -> bool {
        self.used == 0
    }

    /// Takes a block out; says whether it was used before. None if all are in use.
    ///
    /// # Safety
    /// The caller owns the region.
    pub(super) unsafe fn take(region: NonNull<Region>) -> Option<(FreeBlock, bool)> {
        // SAFETY: promised by the caller.
        let this = unsafe { &mut *region.as_ptr() };
        if let Some(block) = this.free.take() {
            // SAFETY: the region owns its free blocks, which are linked to each other.
            this.free = unsafe { block.next() };
            this.used += 1;
            return Some((block, true));
        }
        if this.carved == this.blocks {
            return None;
        }
        let stride = this.capacity + FreeBlock::HEADER_BYTES;
        let offset = size_of::<Region>() + this.carved as usize * stride;
        this.carved += 1;
        this.used += 1;
        // SAFETY: `blocks` strides fit behind the header.
        let memory = unsafe { region.cast::<u8>().add(offset) };
        Some((FreeBlock::new(memory, region), false))
    }

    /// # Safety
    /// The caller owns the region, and the block was taken out of it.
    unsafe fn put(region: NonNull<Region>, block: FreeBlock) {
        // SAFETY: promised by the caller.
        let this = unsafe { &mut *region.as_ptr() };
        // SAFETY: nobody uses the block any more.
        unsafe { block.set_next(this.free.take()) };
        this.free = Some(block);
        this.used -= 1;
    }
}

/// The regions of one size class that have room. Full ones are found through their blocks when these come back.
#[derive(Default)]
pub(super) struct Shelf {
    /// Some blocks are in use. These are filled up first, so that others become vacant.
    partial: List,
    /// No block is in use: what can be unmapped. The one that was in use last comes first.
    vacant: List,
    vacant_bytes: usize,
}

// SAFETY: the shelf owns its regions.
unsafe impl Send for Shelf {}

impl Shelf {
    /// A block, and whether it was used before.
    pub(super) fn take(&mut self) -> Option<(FreeBlock, bool)> {
        let region = match self.partial.first {
            Some(region) => region,
            None => {
                let region = self.pop_vacant_first()?;
                self.partial.push_front(region);
                region
            }
        };
        // SAFETY: the shelf owns the regions in its lists.
        unsafe {
            let taken = Region::take(region);
            if (*region.as_ptr()).is_full() {
                self.partial.remove(region);
            }
            taken
        }
    }

    /// Takes in a region that has room.
    pub(super) fn add(&mut self, region: NonNull<Region>) {
        self.partial.push_front(region);
    }

    /// Takes back a block. Says whether its region became vacant.
    ///
    /// # Safety
    /// The block was taken out of a region of this shelf.
    pub(super) unsafe fn put(&mut self, block: FreeBlock) -> bool {
        let region = block.region();
        // SAFETY: the region is in a list of this shelf, or full and so in none. The lock is held, which guards
        // all of them.
        unsafe {
            let was_full = (*region.as_ptr()).is_full();
            Region::put(region, block);
            let vacant = (*region.as_ptr()).is_vacant();
            match (was_full, vacant) {
                (true, false) => self.partial.push_front(region),
                (false, true) => self.partial.remove(region),
                _ => {}
            }
            if vacant {
                self.vacant.push_front(region);
                self.vacant_bytes += (*region.as_ptr()).waiting_bytes();
            }
            vacant
        }
    }

    /// Bytes in regions that could be unmapped.
    pub(super) fn vacant_bytes(&self) -> usize {
        self.vacant_bytes
    }

    /// Takes out the vacant region that was not used for longest.
    pub(super) fn pop_vacant(&mut self) -> Option<NonNull<Region>> {
        let region = self.vacant.last?;
        self.remove_vacant(region);
        Some(region)
    }

    fn pop_vacant_first(&mut self) -> Option<NonNull<Region>> {
        let region = self.vacant.first?;
        self.remove_vacant(region);
        Some(region)
    }

    fn remove_vacant(&mut self, region: NonNull<Region>) {
        // SAFETY: the region is in this list.
        unsafe {
            self.vacant.remove(region);
            self.vacant_bytes -= (*region.as_ptr()).waiting_bytes();
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        // A block in use keeps its pool alive, so all regions are vacant when this happens.
        debug_assert!(self.partial.first.is_none());
        while let Some(region) = self.pop_vacant() {
            // SAFETY: vacant, and in no list any more.
            unsafe { Region::unmap(region) };
        }
    }
}

/// A doubly linked list of regions.
#[derive(Default)]
struct List {
    first: Option<NonNull<Region>>,
    last: Option<NonNull<Region>>,
}

impl List {
    fn push_front(&mut self, region: NonNull<Region>) {
        let next = self.first.replace(region);
        // SAFETY: whoever owns the list owns its regions, and this one.
        unsafe {
            (*region.as_ptr()).previous = None;
            (*region.as_ptr()).next = next;
            match next {
                Some(next) => (*next.as_ptr()).previous = Some(region),
                None => self.last = Some(region),
            }
        }
    }

    /// # Safety
    /// The region is in this list.
    unsafe fn remove(&mut self, region: NonNull<Region>) {
        // SAFETY: promised by the caller; whoever owns the list owns its regions.
        unsafe {
            let (previous, next) = ((*region.as_ptr()).previous, (*region.as_ptr()).next);
            match previous {
                Some(previous) => (*previous.as_ptr()).next = next,
                None => self.first = next,
            }
            match next {
                Some(next) => (*next.as_ptr()).previous = previous,
                None => self.last = previous,
            }
        }
    }
}

#[cfg(not(any(loom, fuzzing)))]
mod source {
    use std::ptr::{self, NonNull};

    pub(super) fn map(bytes: usize) -> Option<NonNull<u8>> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous mapping where the kernel likes touches nothing that exists.
        let raw = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        if raw == libc::MAP_FAILED { None } else { NonNull::new(raw.cast()) }
    }

    /// # Safety
    /// The memory comes from `map` with as many bytes, and nobody looks at it again.
    pub(super) unsafe fn unmap(memory: NonNull<u8>, bytes: usize) {
        // SAFETY: promised by the caller.
        if unsafe { libc::munmap(memory.as_ptr().cast(), bytes) } != 0 {
            // The hole would split a mapping and exceed `vm.max_map_count`. Then the addresses stay taken, but
            // not the memory.
            // SAFETY: as above.
            unsafe { libc::madvise(memory.as_ptr().cast(), bytes, libc::MADV_DONTNEED) };
        }
    }
}

/// From the allocator, which a sanitizer watches.
#[cfg(any(loom, fuzzing))]
mod source {
    use std::alloc::{Layout, alloc, dealloc};
    use std::ptr::NonNull;

    fn layout(bytes: usize) -> Option<Layout> {
        // More than the allocator can have is refused here: a sanitizer would end the process.
        let bytes = Some(bytes).filter(|&bytes| bytes <= 1 << 40)?;
        Layout::from_size_align(bytes, align_of::<super::Region>()).ok()
    }

    pub(super) fn map(bytes: usize) -> Option<NonNull<u8>> {
        // SAFETY: the layout is not empty, since it includes the region's header.
        layout(bytes).and_then(|layout| NonNull::new(unsafe { alloc(layout) }))
    }

    /// # Safety
    /// The memory comes from `map` with as many bytes, and nobody looks at it again.
    pub(super) unsafe fn unmap(memory: NonNull<u8>, bytes: usize) {
        if let Some(layout) = layout(bytes) {
            // SAFETY: promised by the caller.
            unsafe { dealloc(memory.as_ptr(), layout) };
        }
    }
}
