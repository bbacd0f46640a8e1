//! Whole pages, from the kernel and back to it. For a sanitizer, Miri and models from the allocator, which they watch.

#[cfg(any(loom, fuzzing, miri))]
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// A page, in bytes: what mappings are made of.
pub(super) const PAGE_BYTES: usize = 4 << 10;
/// What the memory is aligned to at least, in bytes: a cache line.
pub(super) const ALIGN_BYTES: usize = 64;

/// So many bytes, at least one, aligned to [`ALIGN_BYTES`]. None if they are not to be had.
#[cfg(not(any(loom, fuzzing, miri)))]
pub(super) fn map(bytes: usize) -> Option<NonNull<u8>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: an anonymous mapping where the kernel likes touches nothing that exists.
    let raw = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
    if raw == libc::MAP_FAILED { None } else { NonNull::new(raw.cast()) }
}

/// Gives it back. False if the kernel refuses for now: the hole would split a mapping and exceed `vm.max_map_count`. Then the addresses stay
/// taken, but not the memory, and it can be tried again.
///
/// # Safety
/// The memory comes from [`map`] with as many bytes, and nobody looks at it again.
#[cfg(not(any(loom, fuzzing, miri)))]
pub(super) unsafe fn unmap(memory: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: promised by the caller.
    let unmapped = unsafe { libc::munmap(memory.as_ptr().cast(), bytes) } == 0;
    if !unmapped {
        // SAFETY: as above.
        unsafe { libc::madvise(memory.as_ptr().cast(), bytes, libc::MADV_DONTNEED) };
    }
    unmapped
}

/// Gives the whole pages of a range back to the kernel, and not its addresses.
///
/// # Safety
/// The range lies in memory from [`map`], and nobody uses it.
#[cfg(not(any(loom, fuzzing, miri)))]
pub(super) unsafe fn discard(memory: NonNull<u8>, bytes: usize) {
    let address = memory.as_ptr() as usize;
    let (start, end) =
        (address.next_multiple_of(PAGE_BYTES), (address + bytes) & !(PAGE_BYTES - 1));
    if start < end {
        // SAFETY: promised by the caller.
        unsafe {
            let pages = memory.as_ptr().add(start - address);
            libc::madvise(pages.cast(), end - start, libc::MADV_DONTNEED);
        }
    }
}

/// # Safety
/// The range lies in memory from [`map`], and nobody uses it.
#[cfg(any(loom, fuzzing, miri))]
pub(super) unsafe fn discard(_: NonNull<u8>, _: usize) {}

/// So many bytes, at least one, aligned to [`ALIGN_BYTES`]. None if they are not to be had.
#[cfg(any(loom, fuzzing, miri))]
pub(super) fn map(bytes: usize) -> Option<NonNull<u8>> {
    // SAFETY: the layout is not empty.
    layout(bytes).and_then(|layout| NonNull::new(unsafe { alloc(layout) }))
}

/// # Safety
/// The memory comes from [`map`] with as many bytes, and nobody looks at it again.
#[cfg(any(loom, fuzzing, miri))]
pub(super) unsafe fn unmap(memory: NonNull<u8>, bytes: usize) -> bool {
    if let Some(layout) = layout(bytes) {
        // SAFETY: promised by the caller.
        unsafe { dealloc(memory.as_ptr(), layout) };
    }
    true
}

#[cfg(any(loom, fuzzing, miri))]
fn layout(bytes: usize) -> Option<Layout> {
    // More than the allocator can have is refused here: a sanitizer would end the process.
    let bytes = Some(bytes).filter(|&bytes| bytes <= 1 << 40)?;
    Layout::from_size_align(bytes, ALIGN_BYTES).ok()
}
