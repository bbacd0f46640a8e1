//! Bounded pools of blocks.

use std::fmt;

use super::block::Block;
use super::budget::{MemoryLevel, Usage};
use super::config::PoolConfig;
#[cfg(not(loom))]
use super::machine;
use super::slice::Slice;
use super::store::{PoolStats, Store};
use super::tail::Tail;
use crate::error::Error;
use crate::sync::{Arc, Ordering};

/// Where blocks come from and return to. Cheap to clone; clones are the same pool.
///
/// A request is rounded up to a power of two. A block is released by whichever thread drops the last reference to
/// it; it then waits in the pool for the next request of its size.
///
/// ```
/// # extern crate duopoll_core as duopoll;
/// use duopoll::{LinkBuffer, Pool, PoolConfig};
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
/// # Ok::<(), duopoll::Error>(())
/// ```
///
/// # Memory
/// Memory is mapped from the kernel, and does not pass through the global allocator: in mappings that are divided into blocks of one
/// size, of 256 KiB for blocks up to 32 KiB each, and of 1 to 4 MiB for some larger ones; a block above 1 MiB has a mapping of its
/// own, and one above [`PoolConfig::max_pooled_block_bytes`] is not rounded up beyond whole pages.
///
/// What waits is bounded. When a mapping becomes vacant and more than [`PoolConfig::max_pooled_bytes`] wait, a
/// vacant one is unmapped, of the size class that has most of them; and a block above 32 KiB that would be more than that gives its
/// memory back at once. So memory comes back down after a burst by itself, and a size that is no longer used makes room for one that
/// is. As long as one of the pool's pollers will look at it again, as much more may wait as was in use at most in the last half second to second,
/// and is not now: it is likely to be in use again. If the kernel has no memory for another block, all that waits is given back first. Only the free small blocks of a mapping that has another block in use can exceed the limit: compact a slice that is to be kept for
/// long ([`Slice::compact`](crate::Slice::compact)).
///
/// Blocks outlive the pool's handles: dropping every `Pool` leaves the blocks in use as they are, and all memory is
/// unmapped with the last of them.
///
/// # Complexity
/// Allocation and release are O(1) and take one uncontended lock, of the size class alone; a release that unmaps
/// looks at every class.
#[derive(Clone)]
pub struct Pool {
    store: Arc<Store>,
}

impl Pool {
    /// A pool with these limits. Allocates no block.
    pub fn new(config: PoolConfig) -> Pool {
        Pool { store: Arc::new(Store::new(config)) }
    }

    /// The pool that buffers use unless they are given another: one per process, made at its first use. It may have half of the
    /// memory that the process may have: of the machine's, the cgroup's, or its address space, whichever is least;
    /// [`set_max_live_bytes`](Pool::set_max_live_bytes) changes that.
    #[cfg(not(loom))]
    pub fn global() -> &'static Pool {
        static GLOBAL: std::sync::OnceLock<Pool> = std::sync::OnceLock::new();
        GLOBAL.get_or_init(|| {
            // Miri has no machine to ask.
            let memory = if cfg!(miri) { None } else { machine::memory_bytes() };
            let max_live_bytes = memory.map_or(usize::MAX, |bytes| bytes / 2);
            Pool::new(PoolConfig { max_live_bytes, ..PoolConfig::default() })
        })
    }

    /// A model has no state beyond one execution.
    #[cfg(loom)]
    pub fn global() -> &'static Pool {
        panic!("a model makes its own pool")
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// An empty block of at least `min_bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the kernel refuses, or the [limit](PoolConfig::max_live_bytes) is reached.
    pub fn allocate(&self, min_bytes: usize) -> Result<Tail, Error> {
        #[cfg(duopoll_faults)]
        if crate::faults::errno(crate::faults::Call::Block).is_some() {
            return Err(Error::OutOfMemory { bytes: min_bytes });
        }
        let (free, capacity) = self.store.take(min_bytes)?;
        Ok(Tail::new(Block::new(free, capacity, self.store.clone())))
    }

    /// Gives all memory back to the kernel in which no block is in use, whatever the limits.
    pub fn trim(&self) {
        self.store.trim();
    }

    /// How much is in use and how much waits.
    pub fn stats(&self) -> PoolStats {
        self.store.stats()
    }

    /// The limits, as adjusted by [`Pool::new`].
    pub fn config(&self) -> PoolConfig {
        self.store.config()
    }
}

impl Pool {
    /// The most bytes in blocks that are in use; `usize::MAX` without a limit.
    pub fn max_live_bytes(&self) -> usize {
        self.store().budget.max_bytes()
    }

    /// Changes that limit. If more are in use, new ones are refused until it is fewer.
    pub fn set_max_live_bytes(&self, bytes: usize) {
        self.store().budget.max_bytes.store(bytes, Ordering::Relaxed);
    }

    /// For engines: what a connection may hold in each direction, in bytes.
    #[doc(hidden)]
    pub fn share_bytes(&self) -> usize {
        self.usage().share().min(1 << 30)
    }

    /// The thread of a poller looks after the pool from now on: what was in use lately may wait, while somebody
    /// [begins periods](Pool::begin_period).
    pub(crate) fn keep(&self) {
        self.store().keep();
    }

    /// It does so no longer.
    pub(crate) fn let_go(&self) {
        self.store().let_go();
    }

    /// Whether this thread has promised to begin a period when this one is over, since more waits than may wait for good.
    pub(crate) fn is_promised(&self) -> bool {
        self.store().is_promised()
    }

    /// Begins a period, unless somebody else has since `known` was; says which one it is now.
    pub(crate) fn begin_period(&self, known: usize) -> usize {
        self.store().begin_period(known)
    }

    pub(crate) fn usage(&self) -> Usage {
        let (store, budget) = (self.store(), &self.store().budget);
        Usage {
            live_bytes: store.live_bytes(),
            max_bytes: budget.max_bytes(),
            connections: budget.connections.load(Ordering::Relaxed),
            refusals: budget.refusals.load(Ordering::Relaxed),
        }
    }

    /// There are `now` connections of a poller where there were `before`.
    pub(crate) fn count_connections(&self, before: usize, now: usize) {
        // Wraps around where there are fewer.
        self.store().budget.connections.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Whether nobody has told of this level.
    pub(crate) fn begins_level(&self, level: MemoryLevel) -> bool {
        self.store().budget.told.swap(level as usize, Ordering::Relaxed) != level as usize
    }
}

impl Slice {
    /// The bytes, copied into a block of `pool`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no memory for the copy.
    pub fn copy_from(bytes: &[u8], pool: &Pool) -> Result<Slice, Error> {
        Ok(pool.allocate(bytes.len())?.write(bytes))
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

    fn limited(bytes: usize) -> Pool {
        Pool::new(PoolConfig { max_live_bytes: bytes, ..PoolConfig::default() })
    }

    #[test]
    fn more_than_the_limit_is_refused_until_there_is_room() {
        let pool = limited(10_000);
        let first = pool.allocate(8192).expect("room");
        assert!(pool.allocate(4096).is_err());
        assert_eq!(pool.usage().refusals, 1);
        let small = pool.allocate(1000).expect("room for a small one");
        drop(first);
        let again = pool.allocate(8192).expect("room again");
        pool.set_max_live_bytes(1 << 20);
        let large = pool.allocate(512 << 10).expect("a higher limit");
        drop((small, again, large));
        assert_eq!(pool.stats().live_bytes, 0);
        // One that is in no size class.
        assert!(pool.allocate(2 << 20).is_err());
        pool.set_max_live_bytes(usize::MAX);
        drop(pool.allocate(2 << 20).expect("no limit"));
        assert_eq!(pool.stats().live_bytes, 0);
    }

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

    /// So many blocks of 64 KiB, all in use at once; gives what waits when they are not any more.
    fn burst(pool: &Pool, blocks: usize) -> usize {
        let blocks: Vec<_> = (0..blocks).map(|_| pool.allocate(64 << 10).unwrap()).collect();
        drop(blocks);
        pool.stats().pooled_bytes
    }

    const MIB: usize = 1 << 20;

    fn of_two_mib() -> Pool {
        Pool::new(PoolConfig { max_pooled_bytes: 2 * MIB, ..PoolConfig::default() })
    }

    #[test]
    fn where_somebody_looks_what_was_in_use_waits_for_two_periods() {
        let pool = of_two_mib();
        assert!(burst(&pool, 160) <= 2 * MIB);
        pool.keep();
        assert_eq!(burst(&pool, 160), 10 * MIB);
        assert!(pool.is_promised());
        let first = pool.begin_period(0);
        assert_eq!(pool.stats().pooled_bytes, 10 * MIB);
        // As long as it is used, it stays.
        assert_eq!(burst(&pool, 160), 10 * MIB);
        let second = pool.begin_period(first);
        let third = pool.begin_period(second);
        assert!(pool.stats().pooled_bytes <= 2 * MIB);
        assert!(!pool.is_promised());
        // Less is used than before.
        assert_eq!(burst(&pool, 160), 10 * MIB);
        let fourth = pool.begin_period(third);
        burst(&pool, 64);
        pool.begin_period(fourth);
        assert_eq!(pool.stats().pooled_bytes, 6 * MIB);
        assert!(pool.is_promised());
        pool.let_go();
        assert!(pool.stats().pooled_bytes <= 2 * MIB);
    }

    #[test]
    fn elsewhere_nothing_waits_longer_that_nobody_looks_at_again() {
        let pool = of_two_mib();
        pool.keep();
        let elsewhere = |blocks: Vec<_>| {
            std::thread::scope(|scope| scope.spawn(|| drop(blocks)).join().unwrap());
            pool.stats().pooled_bytes
        };
        let some = |count| (0..count).map(|_| pool.allocate(64 << 10).unwrap()).collect();
        assert!(elsewhere(some(160)) <= 2 * MIB);
        // Nor of another pool.
        assert!(burst(&of_two_mib(), 160) <= 2 * MIB);
        // But what the poller's thread lets wait, and will look at again, is left alone.
        assert_eq!(burst(&pool, 160), 10 * MIB);
        assert_eq!(elsewhere(some(1)), 10 * MIB);
        let all = some(160);
        assert_eq!(pool.stats().pooled_bytes, 0);
        // It has promised that, and nobody else may rely on it when it is done.
        assert!(pool.is_promised());
        let first = pool.begin_period(0);
        assert!(!pool.is_promised());
        assert!(elsewhere(all) <= 2 * MIB);
        assert_eq!(burst(&pool, 160), 10 * MIB);
        pool.begin_period(first);
        pool.let_go();
        assert!(pool.stats().pooled_bytes <= 2 * MIB);
    }

    /// Of blocks of rising sizes one stays in use of each mapping: what waits beside it makes room for the next size.
    #[test]
    #[cfg(not(fuzzing))]
    fn what_waits_beside_blocks_in_use_makes_room() {
        let pool = of_two_mib();
        pool.keep();
        let mut kept = Vec::new();
        for bytes in [64 << 10, 128 << 10, 256 << 10] {
            let blocks: Vec<_> =
                (0..32 * MIB / bytes).map(|_| pool.allocate(bytes).unwrap()).collect();
            let stats = pool.stats();
            let most = stats.peak_bytes + 2 * MIB;
            assert!(stats.live_bytes + stats.pooled_bytes <= most, "{bytes}: {stats:?}");
            kept.extend(blocks.into_iter().step_by(16));
        }
        drop(kept);
        pool.let_go();
    }

    #[test]
    fn what_waits_of_other_sizes_makes_room() {
        let pool = of_two_mib();
        pool.keep();
        assert_eq!(burst(&pool, 160), 10 * MIB);
        let others: Vec<_> = (0..10 * 256).map(|_| pool.allocate(4 << 10).unwrap()).collect();
        let stats = pool.stats();
        assert!(stats.live_bytes + stats.pooled_bytes <= 12 * MIB, "{stats:?}");
        drop(others);
        pool.let_go();
    }

    #[test]
    fn several_look_after_a_pool_at_once() {
        let pool = of_two_mib();
        std::thread::scope(|scope| {
            for nth in 0..4 {
                let pool = &pool;
                scope.spawn(move || {
                    pool.keep();
                    let mut period = 0;
                    for round in 0..if cfg!(miri) { 3 } else { 300 } {
                        let bytes = (16 << 10) << ((nth + round) % 4);
                        let count = (4 * MIB) / bytes;
                        let blocks: Vec<_> =
                            (0..count).map(|_| pool.allocate(bytes).unwrap()).collect();
                        period = pool.begin_period(period);
                        drop(blocks);
                    }
                    pool.let_go();
                });
            }
        });
        let stats = pool.stats();
        assert_eq!((stats.live_blocks, stats.live_bytes), (0, 0));
        assert!(stats.pooled_bytes <= 2 * MIB, "{stats:?}");
    }

    #[test]
    #[cfg(not(fuzzing))]
    fn large_blocks_are_given_back_beside_those_in_use() {
        let pool = of_two_mib();
        pool.keep();
        // One of each mapping stays.
        let mut blocks: Vec<_> = (0..160).map(|_| pool.allocate(64 << 10).unwrap()).collect();
        let mut nth = 0;
        blocks.retain(|_| {
            nth += 1;
            nth % 16 == 1
        });
        assert_eq!(pool.stats().pooled_bytes, 150 * (64 << 10));
        let period = pool.begin_period(0);
        pool.begin_period(period);
        let stats = pool.stats();
        assert_eq!((stats.live_blocks, stats.pooled_bytes <= 2 * MIB), (10, true), "{stats:?}");
        // They can be had again.
        blocks.extend((0..150).map(|_| pool.allocate(64 << 10).unwrap()));
        for block in &mut blocks {
            assert_eq!(block.write(&[7; 64 << 10]), [7; 64 << 10]);
        }
        drop(blocks);
        pool.let_go();
        let stats = pool.stats();
        assert!((stats.live_bytes, stats.pooled_bytes <= 2 * MIB) == (0, true), "{stats:?}");
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

    #[test]
    fn blocks_of_one_mapping_come_back_from_many_threads() {
        let pool = Pool::new(PoolConfig::default());
        std::thread::scope(|scope| {
            for byte in 0..4 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..if cfg!(miri) { 20 } else { 20_000 } {
                        let mut tail = pool.allocate(4096).unwrap();
                        let slice = tail.write(&[byte; 100]);
                        drop(tail);
                        assert_eq!(slice, [byte; 100]);
                    }
                });
            }
        });
        assert_eq!(pool.stats().live_blocks, 0);
    }
}
