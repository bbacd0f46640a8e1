//! Memory mapped from the kernel, and the blocks it is divided into.
//!
//! ```text
//!  ┌─────────┬────────┬───────────────┬────────┬───────────────┬┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┐
//!  │ Mapping │ header │ payload       │ header │ payload       │ not carved yet ┊
//!  └─────────┴────────┴───────────────┴────────┴───────────────┴┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘
//! ```
//!
//! A mapping holds blocks of one size: as many as fit for small ones, some for large ones, so that a process never has more mappings than
//! the kernel allows (`vm.max_map_count`). The heap is not used for
//! blocks, since it gives little back after a burst: only what lies above the highest block that is still in use,
//! and a pool always keeps some.
//!
//! What a mapping begins with has one owner at a time: whoever made it, then whoever holds the lock of its size class.
//! Nobody else reads a byte of it. A block that is in use knows where its mapping begins, and its capacity, from its
//! own header.

use std::ptr::NonNull;

use super::pages::{self, ALIGN_BYTES, PAGE_BYTES};
use crate::error::Error;

/// What a mapping begins with. A cache line, so that the blocks behind it are aligned.
#[repr(C, align(64))]
pub(super) struct Mapping {
    /// Its size.
    bytes: usize,
    /// Payload of each block.
    capacity: usize,
    /// How many blocks there is room for, how many were ever given out, and how many are now.
    blocks: u16,
    carved: u16,
    used: u16,
    /// Free ones whose memory was given back to the kernel.
    discarded: u16,
    /// Blocks that were given out before and are free: the one used last comes first, for its lines are cached.
    free: Option<NonNull<u8>>,
    /// Neighbours in a list of the size class.
    pub(super) previous: Option<NonNull<Mapping>>,
    pub(super) next: Option<NonNull<Mapping>>,
}

const _: () = assert!(size_of::<Mapping>() == ALIGN_BYTES && align_of::<Mapping>() == ALIGN_BYTES);

/// A block that nobody refers to. The bytes that its header takes while there are references hold, while it is in its
/// mapping, the link to the next free block.
pub(super) struct FreeBlock {
    pub(super) memory: NonNull<u8>,
    pub(super) mapping: NonNull<Mapping>,
}

/// Bytes before the payload of each block, for the header of one that is in use: a cache line. In a model, what it
/// watches takes more.
pub(super) const HEADER_BYTES: usize = if cfg!(loom) { 256 } else { ALIGN_BYTES };

/// Room for several small blocks, in bytes: 63 blocks of 4 KiB with their headers fill it to the last byte.
const SHARED_BYTES: usize = 256 << 10;
/// The largest block that counts as small, in bytes.
const SMALL_BYTES_MAX: usize = 32 << 10;
/// As many large blocks as these bytes hold share a mapping, and at least a few, up to the largest that shares one at all.
const SHARED_BYTES_OF_LARGE: usize = 1 << 20;
const LARGE_BLOCKS_MIN: usize = 4;
const LARGE_BYTES_MAX: usize = 1 << 20;
/// A sanitizer sees no use after free inside a mapping, so fuzzing gives each block a mapping of its own.
const SHARED: bool = cfg!(not(fuzzing));

impl Mapping {
    /// A mapping for blocks of exactly `capacity` bytes, of a size class.
    pub(super) fn of_class(capacity: usize) -> Result<NonNull<Mapping>, Error> {
        if SHARED && capacity <= SMALL_BYTES_MAX {
            let blocks = (SHARED_BYTES - size_of::<Mapping>()) / (HEADER_BYTES + capacity);
            return Mapping::new(SHARED_BYTES, capacity, blocks as u16);
        }
        let blocks = match capacity {
            ..=LARGE_BYTES_MAX if SHARED => {
                (SHARED_BYTES_OF_LARGE / capacity).max(LARGE_BLOCKS_MIN)
            }
            _ => 1,
        };
        Mapping::new(bytes_for(blocks, capacity)?, capacity, blocks as u16)
    }

    /// A mapping for one block of exactly `capacity` bytes, of a size class.
    pub(super) fn of_one_of_class(capacity: usize) -> Result<NonNull<Mapping>, Error> {
        Mapping::new(bytes_for(1, capacity)?, capacity, 1)
    }

    /// A mapping for one block of at least `min_bytes`: it may as well use the last page to its end.
    pub(super) fn of_one(min_bytes: usize) -> Result<NonNull<Mapping>, Error> {
        let bytes = bytes_for(1, min_bytes)?;
        Mapping::new(bytes, bytes - size_of::<Mapping>() - HEADER_BYTES, 1)
    }

    /// `blocks` blocks of `capacity` bytes fit in `bytes`, behind what the mapping begins with.
    fn new(bytes: usize, capacity: usize, blocks: u16) -> Result<NonNull<Mapping>, Error> {
        let memory = pages::map(bytes).ok_or(Error::OutOfMemory { bytes: capacity })?;
        let mapping = memory.cast::<Mapping>();
        let begin = Mapping {
            bytes,
            capacity,
            blocks,
            carved: 0,
            used: 0,
            discarded: 0,
            free: None,
            previous: None,
            next: None,
        };
        // SAFETY: freshly mapped, aligned, and larger than this.
        unsafe { mapping.write(begin) };
        Ok(mapping)
    }

    /// Gives the memory back, or, if the kernel does not take it now, what is to be tried again.
    ///
    /// # Safety
    /// The caller owns the mapping, none of its blocks is in use, and nobody looks at it again.
    pub(super) unsafe fn unmap(mapping: NonNull<Mapping>) -> Result<(), Kept> {
        // SAFETY: promised by the caller. Free blocks hold nothing that needs dropping.
        let bytes = unsafe { (*mapping.as_ptr()).bytes };
        let kept = Kept { memory: mapping.cast(), bytes };
        kept.unmap()
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes in blocks that were given out before and are free, and whose memory is still there.
    pub(super) fn waiting_bytes(&self) -> usize {
        usize::from(self.carved - self.used - self.discarded) * self.capacity
    }

    /// Whether the memory of free blocks was given back to the kernel.
    pub(super) fn has_discarded(&self) -> bool {
        self.discarded > 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.used == self.blocks
    }

    pub(super) fn is_vacant(&self) -> bool {
        self.used == 0
    }

    /// Takes a block out; says whether it was used before and its memory is there. None if all are in use.
    ///
    /// # Safety
    /// The caller owns the mapping.
    pub(super) unsafe fn take(mapping: NonNull<Mapping>) -> Option<(FreeBlock, bool)> {
        // SAFETY: promised by the caller.
        let this = unsafe { &mut *mapping.as_ptr() };
        if let Some(memory) = this.free {
            // SAFETY: a free block begins with its link: see `put`.
            let Link { next, discarded } = unsafe { memory.cast::<Link>().read() };
            this.free = next;
            this.used += 1;
            this.discarded -= u16::from(discarded);
            return Some((FreeBlock { memory, mapping }, !discarded));
        }
        if this.carved == this.blocks {
            return None;
        }
        let stride = HEADER_BYTES + this.capacity;
        let offset = size_of::<Mapping>() + usize::from(this.carved) * stride;
        this.carved += 1;
        this.used += 1;
        // SAFETY: `blocks` strides fit behind what the mapping begins with.
        let memory = unsafe { mapping.cast::<u8>().add(offset) };
        Some((FreeBlock { memory, mapping }, false))
    }

    /// Takes a block back into its mapping. `discarded`: its memory [was given back](Mapping::discard).
    ///
    /// # Safety
    /// The caller owns the mapping, the block was taken out of it, and nobody uses it any more.
    pub(super) unsafe fn put(block: FreeBlock, discarded: bool) {
        // SAFETY: promised by the caller.
        let this = unsafe { &mut *block.mapping.as_ptr() };
        let link = Link { next: this.free, discarded };
        // SAFETY: nobody uses the block; its header's room is large enough for the link, and aligned.
        unsafe { block.memory.cast::<Link>().write(link) };
        this.free = Some(block.memory);
        this.used -= 1;
        this.discarded += u16::from(discarded);
    }

    /// Gives the memory of its free blocks back, as [`discard`](Mapping::discard) does of one, and says of how many bytes; None for small ones.
    ///
    /// # Safety
    /// The caller owns the mapping.
    pub(super) unsafe fn discard_free(mapping: NonNull<Mapping>) -> Option<usize> {
        // SAFETY: promised by the caller.
        let this = unsafe { &mut *mapping.as_ptr() };
        let (mut discarded, mut at) = (0, this.free);
        while let Some(memory) = at {
            // SAFETY: a free block begins with its link: see `put`.
            let link = unsafe { memory.cast::<Link>().as_mut() };
            at = link.next;
            if link.discarded {
                continue;
            }
            // SAFETY: it is free, and of this capacity.
            if !unsafe { Mapping::discard(&FreeBlock { memory, mapping }, this.capacity) } {
                return None;
            }
            link.discarded = true;
            discarded += 1;
        }
        this.discarded += discarded;
        Some(usize::from(discarded) * this.capacity)
    }

    /// Gives the memory of a large block back to the kernel, but for its ends, and not its addresses. False for a small one.
    ///
    /// # Safety
    /// The block has this capacity, and nobody uses it any more.
    pub(super) unsafe fn discard(block: &FreeBlock, capacity: usize) -> bool {
        if !SHARED || capacity <= SMALL_BYTES_MAX {
            return false;
        }
        // SAFETY: promised by the caller; what is left of the pages is behind the header, and before the next block.
        unsafe { pages::discard(block.memory.add(HEADER_BYTES), capacity) };
        true
    }
}

/// Memory that the kernel would not take back when it was to be.
pub(super) struct Kept {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: nobody else knows the memory.
unsafe impl Send for Kept {}

impl Kept {
    /// Gives it back, or says that it is still kept.
    pub(super) fn unmap(self) -> Result<(), Kept> {
        // SAFETY: it was mapped with as many bytes, and nobody else knows it.
        if unsafe { pages::unmap(self.memory, self.bytes) } { Ok(()) } else { Err(self) }
    }
}

/// What a free block begins with.
#[repr(C)]
struct Link {
    next: Option<NonNull<u8>>,
    discarded: bool,
}

const _: () = assert!(size_of::<Link>() <= HEADER_BYTES);

/// The whole pages that so many blocks of `capacity` bytes take.
fn bytes_for(blocks: usize, capacity: usize) -> Result<usize, Error> {
    let bytes = capacity.checked_add(HEADER_BYTES).and_then(|bytes| bytes.checked_mul(blocks));
    let bytes = bytes.and_then(|bytes| bytes.checked_add(size_of::<Mapping>()));
    let bytes = bytes.and_then(|bytes| bytes.checked_next_multiple_of(PAGE_BYTES));
    bytes.ok_or(Error::OutOfMemory { bytes: capacity })
}
