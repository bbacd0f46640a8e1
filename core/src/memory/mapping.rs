//! Memory mapped from the kernel, and the blocks it is divided into.
//!
//! ```text
//!  ┌─────────┬────────┬───────────────┬────────┬───────────────┬┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┐
//!  │ Mapping │ header │ payload       │ header │ payload       │ not carved yet ┊
//!  └─────────┴────────┴───────────────┴────────┴───────────────┴┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘
//! ```
//!
//! A mapping holds blocks of one size: as many as fit for small ones, one for large ones. The heap is not used for
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
    blocks: u32,
    carved: u32,
    used: u32,
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
/// The largest block that shares a mapping, in bytes.
const SHARED_BLOCK_BYTES_MAX: usize = 32 << 10;
/// A sanitizer sees no use after free inside a mapping, so fuzzing gives each block a mapping of its own.
const SHARED: bool = cfg!(not(fuzzing));

impl Mapping {
    /// A mapping for blocks of exactly `capacity` bytes, of a size class.
    pub(super) fn of_class(capacity: usize) -> Result<NonNull<Mapping>, Error> {
        if !SHARED || capacity > SHARED_BLOCK_BYTES_MAX {
            return Mapping::new(bytes_for_one(capacity)?, capacity, 1);
        }
        let blocks = (SHARED_BYTES - size_of::<Mapping>()) / (HEADER_BYTES + capacity);
        Mapping::new(SHARED_BYTES, capacity, blocks as u32)
    }

    /// A mapping for one block of at least `min_bytes`: it may as well use the last page to its end.
    pub(super) fn of_one(min_bytes: usize) -> Result<NonNull<Mapping>, Error> {
        let bytes = bytes_for_one(min_bytes)?;
        Mapping::new(bytes, bytes - size_of::<Mapping>() - HEADER_BYTES, 1)
    }

    /// `blocks` blocks of `capacity` bytes fit in `bytes`, behind what the mapping begins with.
    fn new(bytes: usize, capacity: usize, blocks: u32) -> Result<NonNull<Mapping>, Error> {
        let memory = pages::map(bytes).ok_or(Error::OutOfMemory { bytes: capacity })?;
        let mapping = memory.cast::<Mapping>();
        let begin = Mapping {
            bytes,
            capacity,
            blocks,
            carved: 0,
            used: 0,
            free: None,
            previous: None,
            next: None,
        };
        // SAFETY: freshly mapped, aligned, and larger than this.
        unsafe { mapping.write(begin) };
        Ok(mapping)
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The caller owns the mapping, none of its blocks is in use, and nobody looks at it again.
    pub(super) unsafe fn unmap(mapping: NonNull<Mapping>) {
        // SAFETY: promised by the caller. Free blocks hold nothing that needs dropping.
        unsafe { pages::unmap(mapping.cast(), (*mapping.as_ptr()).bytes) };
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes in blocks that were given out before and are free.
    pub(super) fn waiting_bytes(&self) -> usize {
        (self.carved - self.used) as usize * self.capacity
    }

    pub(super) fn is_full(&self) -> bool {
        self.used == self.blocks
    }

    pub(super) fn is_vacant(&self) -> bool {
        self.used == 0
    }

    /// Takes a block out; says whether it was used before. None if all are in use.
    ///
    /// # Safety
    /// The caller owns the mapping.
    pub(super) unsafe fn take(mapping: NonNull<Mapping>) -> Option<(FreeBlock, bool)> {
        // SAFETY: promised by the caller.
        let this = unsafe { &mut *mapping.as_ptr() };
        if let Some(memory) = this.free {
            // SAFETY: a free block begins with its link: see `put`.
            this.free = unsafe { memory.cast::<Option<NonNull<u8>>>().read() };
            this.used += 1;
            return Some((FreeBlock { memory, mapping }, true));
        }
        if this.carved == this.blocks {
            return None;
        }
        let stride = HEADER_BYTES + this.capacity;
        let offset = size_of::<Mapping>() + this.carved as usize * stride;
        this.carved += 1;
        this.used += 1;
        // SAFETY: `blocks` strides fit behind what the mapping begins with.
        let memory = unsafe { mapping.cast::<u8>().add(offset) };
        Some((FreeBlock { memory, mapping }, false))
    }

    /// Takes a block back into its mapping.
    ///
    /// # Safety
    /// The caller owns the mapping, the block was taken out of it, and nobody uses it any more.
    pub(super) unsafe fn put(block: FreeBlock) {
        // SAFETY: promised by the caller.
        let this = unsafe { &mut *block.mapping.as_ptr() };
        // SAFETY: nobody uses the block; its header's room is large enough for the link, and aligned.
        unsafe { block.memory.cast::<Option<NonNull<u8>>>().write(this.free) };
        this.free = Some(block.memory);
        this.used -= 1;
    }
}

/// The whole pages that one block of `capacity` bytes takes.
fn bytes_for_one(capacity: usize) -> Result<usize, Error> {
    let bytes = capacity.checked_add(size_of::<Mapping>() + HEADER_BYTES);
    let bytes = bytes.and_then(|bytes| bytes.checked_next_multiple_of(PAGE_BYTES));
    bytes.ok_or(Error::OutOfMemory { bytes: capacity })
}
