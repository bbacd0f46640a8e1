//! Bounded pools of blocks, one free list per power of two.

use std::fmt;

use super::block::{FreeBlock, FreeList};
use super::tail::Tail;
use crate::error::Error;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock};

/// Where blocks come from and return to. Cheap to clone; clones are the same pool.
///
/// A request is rounded up to a power of two. A block is released by whichever thread drops the last reference to
/// it; it then waits in the pool for the next request of its size, unless that would exceed
/// [`PoolConfig::max_pooled_bytes`] or it is larger than [`PoolConfig::max_pooled_block_bytes`]. What does not
/// wait goes back to the allocator at once. So the memory kept after a burst is bounded.
///
/// Blocks outlive the pool's handles: dropping every `Pool` frees what waits, and a block still in use is freed
/// with its last reference.
///
/// # Complexity
/// Allocation and release are O(1) and take one uncontended lock, of the size class alone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<PoolInner>,
}

/// Limits of a [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// The smallest block, in bytes; rounded up to a power of two, at least 512. Default: 1 KiB.
    pub min_block_bytes: usize,
    /// The largest block that waits in the pool, in bytes. Default: 1 MiB. Larger ones go to the allocator.
    pub max_pooled_block_bytes: usize,
    /// The most bytes that wait in the pool. Default: 8 MiB.
    pub max_pooled_bytes: usize,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig {
            min_block_bytes: 1 << 10,
            max_pooled_block_bytes: 1 << 20,
            max_pooled_bytes: 8 << 20,
        }
    }
}

/// A snapshot of a pool. The figures are read one after another, so they may disagree by what other threads did
/// meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Blocks that somebody refers to.
    pub live_blocks: usize,
    /// Their capacity, in bytes.
    pub live_bytes: usize,
    /// Bytes that wait for the next request.
    pub pooled_bytes: usize,
    /// The most `live_bytes` there ever were.
    pub peak_bytes: usize,
}

/// Powers of two from `2^MIN_SHIFT` on.
const MIN_SHIFT: u32 = 9;
/// Size classes: 512 B to 1 GiB. A larger block belongs to none.
const CLASSES: usize = 22;

pub(super) struct PoolInner {
    config: PoolConfig,
    classes: [Mutex<FreeList>; CLASSES],
    live_blocks: AtomicUsize,
    live_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    pooled_bytes: AtomicUsize,
}

impl Pool {
    /// A pool with these limits.
    pub fn new(config: PoolConfig) -> Pool {
        let config = PoolConfig {
            min_block_bytes: config
                .min_block_bytes
                .clamp(1 << MIN_SHIFT, 1 << 24)
                .next_power_of_two(),
            ..config
        };
        Pool {
            inner: Arc::new(PoolInner {
                config,
                classes: std::array::from_fn(|_| Mutex::new(FreeList::default())),
                live_blocks: AtomicUsize::new(0),
                live_bytes: AtomicUsize::new(0),
                peak_bytes: AtomicUsize::new(0),
                pooled_bytes: AtomicUsize::new(0),
            }),
        }
    }

    /// The pool that buffers use unless they are given another: one per process, made at its first use.
    #[cfg(not(loom))]
    pub fn global() -> &'static Pool {
        static GLOBAL: std::sync::OnceLock<Pool> = std::sync::OnceLock::new();
        GLOBAL.get_or_init(|| Pool::new(PoolConfig::default()))
    }

    /// An empty block of at least `min_bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the allocator refuses.
    pub fn allocate(&self, min_bytes: usize) -> Result<Tail, Error> {
        let inner = &self.inner;
        let bytes = min_bytes.max(inner.config.min_block_bytes);
        let (capacity, class) = match class_of(bytes) {
            Some(class) => (1 << (class as u32 + MIN_SHIFT), Some(class)),
            None => (bytes, None),
        };
        let pooled = class.and_then(|class| lock(&inner.classes[class]).pop());
        let free = match pooled {
            Some(free) => {
                inner.pooled_bytes.fetch_sub(capacity, Ordering::Relaxed);
                free
            }
            None => FreeBlock::allocate(capacity)?,
        };
        inner.live_blocks.fetch_add(1, Ordering::Relaxed);
        let live = inner.live_bytes.fetch_add(capacity, Ordering::Relaxed) + capacity;
        if live > inner.peak_bytes.load(Ordering::Relaxed) {
            inner.peak_bytes.fetch_max(live, Ordering::Relaxed);
        }
        Ok(Tail::new(free.into_block(inner.clone())))
    }

    /// Gives every waiting block back to the allocator.
    pub fn trim(&self) {
        for class in &self.inner.classes {
            let list = std::mem::take(&mut *lock(class));
            self.inner.discard(list);
        }
    }

    /// How much is in use and how much waits.
    pub fn stats(&self) -> PoolStats {
        let inner = &self.inner;
        PoolStats {
            live_blocks: inner.live_blocks.load(Ordering::Relaxed),
            live_bytes: inner.live_bytes.load(Ordering::Relaxed),
            pooled_bytes: inner.pooled_bytes.load(Ordering::Relaxed),
            peak_bytes: inner.peak_bytes.load(Ordering::Relaxed),
        }
    }

    /// The limits, as adjusted by [`Pool::new`].
    pub fn config(&self) -> PoolConfig {
        self.inner.config
    }
}

impl PoolInner {
    /// Takes a block whose last reference was dropped.
    pub(super) fn take_back(&self, block: FreeBlock) {
        let capacity = block.capacity();
        self.live_blocks.fetch_sub(1, Ordering::Relaxed);
        self.live_bytes.fetch_sub(capacity, Ordering::Relaxed);
        let class = class_of(capacity).filter(|_| capacity <= self.config.max_pooled_block_bytes);
        let Some(class) = class else {
            return block.deallocate();
        };
        // Counted before it is visible, so that an allocation that finds it never subtracts first.
        let pooled = self.pooled_bytes.fetch_add(capacity, Ordering::Relaxed) + capacity;
        if pooled > self.config.max_pooled_bytes {
            self.pooled_bytes.fetch_sub(capacity, Ordering::Relaxed);
            return block.deallocate();
        }
        lock(&self.classes[class]).push(block);
    }

    fn discard(&self, mut list: FreeList) {
        while let Some(block) = list.pop() {
            self.pooled_bytes.fetch_sub(block.capacity(), Ordering::Relaxed);
            block.deallocate();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// The class whose blocks hold `bytes`; none if only the allocator can serve it.
fn class_of(bytes: usize) -> Option<usize> {
    let shift = bytes.checked_next_power_of_two()?.trailing_zeros();
    let class = shift.saturating_sub(MIN_SHIFT) as usize;
    (class < CLASSES).then_some(class)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_released_block_is_used_again() {
        let pool = Pool::new(PoolConfig::default());
        let first = pool.allocate(4096).unwrap();
        let address = first.as_ptr();
        drop(first);
        assert_eq!(pool.stats().pooled_bytes, 4096);
        let second = pool.allocate(4000).unwrap();
        assert_eq!(second.as_ptr(), address);
        assert_eq!(pool.stats().pooled_bytes, 0);
        assert_eq!(pool.stats().live_blocks, 1);
    }

    #[test]
    fn what_waits_is_bounded() {
        let pool = Pool::new(PoolConfig { max_pooled_bytes: 8192, ..PoolConfig::default() });
        let blocks: Vec<_> = (0..10).map(|_| pool.allocate(4096).unwrap()).collect();
        drop(blocks);
        let stats = pool.stats();
        assert_eq!((stats.live_bytes, stats.pooled_bytes), (0, 8192));
        assert_eq!(stats.peak_bytes, 40960);
    }

    #[test]
    fn large_blocks_do_not_wait() {
        let pool = Pool::new(PoolConfig::default());
        drop(pool.allocate(2 << 20).unwrap());
        assert_eq!(pool.stats().pooled_bytes, 0);
    }

    #[test]
    fn trim_empties_the_pool() {
        let pool = Pool::new(PoolConfig::default());
        drop(pool.allocate(1).unwrap());
        assert_ne!(pool.stats().pooled_bytes, 0);
        pool.trim();
        assert_eq!(pool.stats().pooled_bytes, 0);
    }

    #[test]
    fn a_block_outlives_its_pool() {
        let pool = Pool::new(PoolConfig::default());
        let mut tail = pool.allocate(16).unwrap();
        let slice = tail.write(b"still here");
        drop((pool, tail));
        assert_eq!(&slice[..], b"still here");
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        let pool = Pool::new(PoolConfig::default());
        for bytes in [usize::MAX, usize::MAX / 2, isize::MAX as usize] {
            assert!(matches!(pool.allocate(bytes), Err(Error::OutOfMemory { .. })));
        }
        assert_eq!(pool.stats(), PoolStats::default());
    }
}
