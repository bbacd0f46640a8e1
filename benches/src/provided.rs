//! Provided buffers of io_uring, for the floors.

use std::alloc::{self, Layout};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

const PAGE_BYTES: usize = 4096;

/// The provided buffers and the ring that hands them to the kernel.
pub struct Buffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    size: usize,
    mask: u16,
    tail: u16,
}

impl Buffers {
    /// Buffers of a group. `count` is a power of two. The memory lives as long as the process.
    pub fn new(submitter: &Submitter<'_>, group: u16, count: u16, size: usize) -> io::Result<Self> {
        let ring_bytes = usize::from(count) * size_of::<BufRingEntry>();
        let mut buffers = Buffers {
            ring: page_aligned(ring_bytes)?.cast(),
            memory: page_aligned(usize::from(count) * size)?,
            size,
            mask: count - 1,
            tail: 0,
        };
        let address = buffers.ring.as_ptr() as u64;
        // SAFETY: the ring has `count` entries, is page-aligned, and is never freed.
        unsafe { submitter.register_buf_ring_with_flags(address, count, group, 0)? };
        (0..count).for_each(|id| buffers.recycle(id));
        buffers.publish();
        Ok(buffers)
    }

    /// Where a buffer's bytes are.
    pub fn address(&self, id: u16) -> *mut u8 {
        debug_assert!(id <= self.mask);
        // SAFETY: `id` is below the count, so the offset stays inside the allocation.
        unsafe { self.memory.as_ptr().add(usize::from(id) * self.size) }
    }

    /// Gives a buffer back; the kernel sees it after [`Buffers::publish`].
    pub fn recycle(&mut self, id: u16) {
        let address = self.address(id) as u64;
        // SAFETY: the masked index is inside the ring, and the kernel does not read an entry at or
        // beyond the published tail.
        let entry = unsafe { &mut *self.ring.as_ptr().add(usize::from(self.tail & self.mask)) };
        entry.set_addr(address);
        entry.set_len(self.size as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes the recycled buffers visible to the kernel.
    pub fn publish(&self) {
        // SAFETY: the tail lies in the first entry of the ring, aligned for a u16, and user space
        // is its only writer.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.ring.as_ptr()) as *mut _) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Zeroed pages that are never freed.
fn page_aligned(bytes: usize) -> io::Result<NonNull<u8>> {
    let layout = Layout::from_size_align(bytes.next_multiple_of(PAGE_BYTES), PAGE_BYTES)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    // SAFETY: the layout has a size above zero.
    NonNull::new(unsafe { alloc::alloc_zeroed(layout) })
        .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
