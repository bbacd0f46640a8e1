//! An allocator that counts for threads that ask for it. Not of every test: it would be the allocator of all.

#![allow(unreachable_pub, reason = "as in the rest of what tests share")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts the allocations of threads that ask for it.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Wraps: what one thread has allocated another may free.
static HELD_BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// Of those that count, one runs at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on.
pub fn count_this_thread() {
    COUNTED.set(true);
}

/// How many there were.
pub fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// How many a run costs, the fewest of five: on a busy machine a queue may grow once more. What a request costs it costs every time.
#[allow(dead_code, reason = "not every test needs it")]
pub fn fewest_allocations(mut run: impl FnMut()) -> u64 {
    let cost = |_| {
        let before = allocations();
        run();
        allocations() - before
    };
    (0..5).map(cost).min().expect("five runs")
}

/// How many bytes are allocated.
#[allow(dead_code, reason = "not every test needs it")]
pub fn held_bytes() -> u64 {
    HELD_BYTES.load(Ordering::Relaxed)
}

fn count(allocations: u64, allocated: usize, freed: usize) {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(allocations, Ordering::Relaxed);
        HELD_BYTES.fetch_add((allocated as u64).wrapping_sub(freed as u64), Ordering::Relaxed);
    }
}

// SAFETY: everything is handed to the system's allocator as it comes.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size(), 0);
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, 0, layout.size());
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size, layout.size());
        // SAFETY: promised by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
