//! Bounded pools of blocks, one shelf of regions per power of two.

use std::fmt;

use super::block::FreeBlock;
use super::region::{Region, Shelf};
use super::tail::Tail;
use crate::error::Error;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock};

/// Where blocks come from and return to. Cheap to clone; clones are the same pool.
///
/// A request is rounded up to a power of two. A block is released by whichever thread drops the last reference to
/// it; it then waits in the pool for the next request of its size.
///
/// ```
/// use duopoll_core::{LinkBuffer, Pool, PoolConfig};
///
/// let mut config = PoolConfig::default();
/// config.max_pooled_bytes = 1 << 20;
/// let pool = Pool::new(config);
///
/// let mut buffer = LinkBuffer::with_pool(pool.clone());
/// buffer.write(b"kept")?;
/// buffer.flush();
/// let slice = buffer.next(4)?;
/// drop((buffer, pool));               // the slice holds its block, and the block its pool
/// assert_eq!(slice, b"kept");
/// # Ok::<(), duopoll_core::Error>(())
/// ```
///
/// # Memory
/// Memory is mapped from the kernel, and does not pass through the global allocator: in regions of 256 KiB that
/// are divided into blocks of one size, up to 32 KiB each; a larger block has a region of its own, and a block
/// above [`PoolConfig::max_pooled_block_bytes`] is not rounded up beyond whole pages.
///
/// What waits is bounded. When a region becomes vacant and more than [`PoolConfig::max_pooled_bytes`] wait, a
/// vacant region is unmapped, of the size class that has most of them. So memory comes back down after a burst by
/// itself, and a size that is no longer used makes room for one that is. Only the free blocks of a region that has
/// another block in use can exceed the limit: compact a slice that is to be kept for long
/// ([`Slice::compact`](crate::Slice::compact)).
///
/// Blocks outlive the pool's handles: dropping every `Pool` leaves the blocks in use as they are, and all memory is
/// unmapped with the last of them.
///
/// # Complexity
/// Allocation and release are O(1) and take one uncontended lock, of the size class alone; a release that unmaps
/// looks at every class.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<PoolInner>,
}

/// Limits of a [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// The smallest block, in bytes; rounded up to a power of two from 512 B to 16 MiB. Default: 1 KiB.
    pub min_block_bytes: usize,
    /// The first block of a [`LinkBuffer`](crate::LinkBuffer) that is written to or received into, in bytes; from
    /// `min_block_bytes` to 1 MiB. Blocks then grow with the traffic. Default: 4 KiB.
    pub node_bytes: usize,
    /// The largest block that waits in the pool, in bytes; at most 1 GiB. Default: 1 MiB. Larger ones are mapped
    /// and unmapped each time.
    pub max_pooled_block_bytes: usize,
    /// The most bytes that wait in the pool. Default: 8 MiB.
    pub max_pooled_bytes: usize,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig {
            min_block_bytes: 1 << 10,
            node_bytes: 4 << 10,
            max_pooled_block_bytes: 1 << 20,
            max_pooled_bytes: 8 << 20,
        }
    }
}

impl PoolConfig {
    fn adjusted(self) -> PoolConfig {
        let min_block_bytes =
            self.min_block_bytes.clamp(CLASS_BYTES_MIN, 1 << 24).next_power_of_two();
        PoolConfig {
            min_block_bytes,
            node_bytes: self.node_bytes.clamp(min_block_bytes, min_block_bytes.max(1 << 20)),
            max_pooled_block_bytes: self.max_pooled_block_bytes.min(CLASS_BYTES_MAX),
            max_pooled_bytes: self.max_pooled_bytes,
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
/// Size classes: 512 B to 1 GiB. A larger block belongs to none. A model of the threads has fewer.
const CLASSES: usize = if cfg!(loom) { 2 } else { 22 };
const CLASS_BYTES_MIN: usize = 1 << MIN_SHIFT;
const CLASS_BYTES_MAX: usize = CLASS_BYTES_MIN << (CLASSES - 1);

pub(super) struct PoolInner {
    config: PoolConfig,
    classes: [Mutex<Shelf>; CLASSES],
    live_blocks: AtomicUsize,
    live_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    pooled_bytes: AtomicUsize,
}

impl Pool {
    /// A pool with these limits. Allocates no block.
    pub fn new(config: PoolConfig) -> Pool {
        Pool {
            inner: Arc::new(PoolInner {
                config: config.adjusted(),
                classes: std::array::from_fn(|_| Mutex::new(Shelf::default())),
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

    /// A model has no state beyond one execution.
    #[cfg(loom)]
    pub fn global() -> &'static Pool {
        panic!("a model makes its own pool")
    }

    /// An empty block of at least `min_bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the kernel refuses.
    pub fn allocate(&self, min_bytes: usize) -> Result<Tail, Error> {
        #[cfg(duopoll_faults)]
        if crate::faults::errno(crate::faults::Call::Block).is_some() {
            return Err(Error::OutOfMemory { bytes: min_bytes });
        }
        let inner = &self.inner;
        let (free, capacity) = inner.take(min_bytes)?;
        inner.live_blocks.fetch_add(1, Ordering::Relaxed);
        let live = inner.live_bytes.fetch_add(capacity, Ordering::Relaxed) + capacity;
        if live > inner.peak_bytes.load(Ordering::Relaxed) {
            inner.peak_bytes.fetch_max(live, Ordering::Relaxed);
        }
        Ok(Tail::new(free.into_block(capacity, inner.clone())))
    }

    /// Gives every vacant region back to the kernel, whatever the limits.
    pub fn trim(&self) {
        for class in &self.inner.classes {
            while let Some(region) = { lock(class).pop_vacant() } {
                self.inner.unmap(region);
            }
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
    /// A free block of at least `min_bytes`, and its capacity.
    fn take(&self, min_bytes: usize) -> Result<(FreeBlock, usize), Error> {
        let no_memory = Error::OutOfMemory { bytes: min_bytes };
        let bytes = min_bytes.max(self.config.min_block_bytes);
        let Some((class, capacity)) = self.class_of(bytes) else {
            let region = Region::new(bytes, None).map_err(|_| no_memory)?;
            // SAFETY: nobody else knows the new region.
            let (block, capacity) = unsafe { (Region::take(region), region.as_ref().capacity()) };
            return block.map(|(block, _)| (block, capacity)).ok_or(no_memory);
        };
        let taken = lock(&self.classes[class]).take();
        let (block, waited) = match taken {
            Some(taken) => taken,
            None => {
                // Mapped without the lock: it is a system call.
                let region = Region::new(capacity, Some(class as u8)).map_err(|_| no_memory)?;
                let mut shelf = lock(&self.classes[class]);
                shelf.add(region);
                shelf.take().ok_or(no_memory)?
            }
        };
        if waited {
            self.pooled_bytes.fetch_sub(capacity, Ordering::Relaxed);
        }
        Ok((block, capacity))
    }

    /// Takes a block whose last reference was dropped.
    pub(super) fn take_back(&self, block: FreeBlock, capacity: usize) {
        self.live_blocks.fetch_sub(1, Ordering::Relaxed);
        self.live_bytes.fetch_sub(capacity, Ordering::Relaxed);
        let region = block.region();
        // SAFETY: the block is not back in its region yet, so the region is there; its class never changes.
        let Some(class) = (unsafe { (*region.as_ptr()).class }) else {
            // SAFETY: it was the only block of its region, which is in no shelf.
            return unsafe { Region::unmap(region) };
        };
        // Counted before it is visible, so that an allocation that finds it never subtracts first.
        self.pooled_bytes.fetch_add(capacity, Ordering::Relaxed);
        // SAFETY: the region's class says which shelf it belongs to.
        let vacant = unsafe { lock(&self.classes[usize::from(class)]).put(block) };
        if vacant {
            self.shrink();
        }
    }

    /// Unmaps vacant regions until the limit holds, or none is left.
    fn shrink(&self) {
        // Looked at after the block was put: whoever makes the region vacant sees, through the lock, what the
        // others have counted who put theirs before.
        while self.pooled_bytes.load(Ordering::Relaxed) > self.config.max_pooled_bytes {
            let fattest = self.classes.iter().max_by_key(|class| lock(class).vacant_bytes());
            let Some(region) = fattest.and_then(|class| lock(class).pop_vacant()) else { return };
            self.unmap(region);
        }
    }

    /// Unmaps a vacant region that was taken off its shelf.
    fn unmap(&self, region: std::ptr::NonNull<Region>) {
        // SAFETY: off the shelf and vacant, so nobody else knows the region.
        unsafe {
            self.pooled_bytes.fetch_sub(region.as_ref().waiting_bytes(), Ordering::Relaxed);
            Region::unmap(region);
        }
    }

    /// The class whose blocks hold `bytes`, and their capacity; none if they are mapped one by one.
    fn class_of(&self, bytes: usize) -> Option<(usize, usize)> {
        let capacity = bytes.checked_next_power_of_two()?.max(CLASS_BYTES_MIN);
        let class = (capacity.trailing_zeros() - MIN_SHIFT) as usize;
        (capacity <= self.config.max_pooled_block_bytes).then_some((class, capacity))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish_non_exhaustive()
    }
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
        assert_eq!(stats.live_bytes, 0);
        assert!(stats.pooled_bytes <= 8192);
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
