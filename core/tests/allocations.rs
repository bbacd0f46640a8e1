//! In steady state neither the allocator nor the kernel is asked for memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use bytes::Bytes;
use duopoll_core::seam::BufferSeam;
use duopoll_core::{LinkBuffer, Pool, PoolConfig};
use libc::iovec;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs the turn until all is warm, then counts what a thousand more allocate, and what they add to the pool.
fn steady(pool: &Pool, mut turn: impl FnMut()) -> (u64, usize) {
    for _ in 0..100 {
        turn();
    }
    let stats = pool.stats();
    let memory = stats.live_bytes + stats.pooled_bytes;
    let before = ALLOCATIONS.get();
    for _ in 0..1000 {
        turn();
    }
    let stats = pool.stats();
    (ALLOCATIONS.get() - before, stats.live_bytes + stats.pooled_bytes - memory)
}

fn nothing() -> iovec {
    iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }
}

#[test]
fn building_and_sending_messages_allocates_nothing() {
    let pool = Pool::new(PoolConfig::default());
    let mut buffer = LinkBuffer::with_pool(pool.clone());
    let mut vectors = [nothing(); 16];
    let owned = Bytes::from_static(&[8; 3000]);
    let counts = steady(&pool, || {
        for _ in 0..10 {
            buffer.write(&[7; 100]).unwrap();
        }
        buffer.push(owned.clone());
        buffer.insert(3000, owned.clone()).unwrap();
        buffer.flush();
        let (_, bytes) = buffer.lend_readable(&mut vectors);
        buffer.skip(bytes).unwrap();
        assert!(buffer.is_empty());
    });
    assert_eq!(counts, (0, 0));
}

#[test]
fn receiving_and_parsing_allocates_nothing() {
    let pool = Pool::new(PoolConfig::default());
    let mut buffer = LinkBuffer::with_pool(pool.clone());
    let counts = steady(&pool, || {
        let mut vectors = [nothing(); 2];
        buffer.lend_writable(&mut vectors).unwrap();
        let n = vectors[0].iov_len.min(1500);
        // SAFETY: just lent.
        unsafe { vectors[0].iov_base.cast::<u8>().write_bytes(7, n) };
        // SAFETY: n bytes were written.
        unsafe { buffer.commit_lent(n) };
        while buffer.len() >= 100 {
            black_box(buffer.peek(4).unwrap());
            black_box(buffer.next(100).unwrap());
        }
    });
    assert_eq!(counts, (0, 0));
}

#[test]
fn passing_buffers_on_allocates_nothing() {
    let pool = Pool::new(PoolConfig::default());
    let mut from = LinkBuffer::with_pool(pool.clone());
    let mut to = LinkBuffer::with_pool(pool.clone());
    let counts = steady(&pool, || {
        from.write(&[7; 5000]).unwrap();
        from.flush();
        let mut part = from.split_to(2500).unwrap();
        to.append(&mut part);
        to.append(&mut from);
        to.flush();
        black_box(to.next(5000).unwrap());
    });
    assert_eq!(counts, (0, 0));
}
