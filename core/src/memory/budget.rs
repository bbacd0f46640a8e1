//! How much of a pool may be in use, and what of it a connection may hold.

use super::pool::Pool;
use crate::sync::{AtomicUsize, Ordering};

/// The limit of a pool, and who shares it.
pub(super) struct Budget {
    max_bytes: AtomicUsize,
    /// Requests that were refused, by the limit or by the kernel.
    refusals: AtomicUsize,
    /// Connections that hold blocks of the pool, or may.
    connections: AtomicUsize,
    /// The [`MemoryLevel`] that was told last.
    told: AtomicUsize,
}

/// How much of a memory budget is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryLevel {
    /// Less than the first mark, which is seven eighths of the budget.
    #[default]
    Normal,
    /// More than that: connections are accepted again below three quarters.
    High,
    /// Something was refused a moment ago.
    Full,
}

/// As if there were at least so many connections.
const CONNECTIONS_MIN: usize = 64;

impl Budget {
    pub(super) fn new(max_bytes: usize) -> Budget {
        Budget {
            max_bytes: AtomicUsize::new(max_bytes),
            refusals: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            told: AtomicUsize::new(MemoryLevel::Normal as usize),
        }
    }

    #[inline]
    pub(super) fn max_bytes(&self) -> usize {
        self.max_bytes.load(Ordering::Relaxed)
    }

    #[cold]
    pub(super) fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a poller sees of the pool that its connections use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) live_bytes: usize,
    pub(crate) max_bytes: usize,
    pub(crate) connections: usize,
    pub(crate) refusals: usize,
}

impl Usage {
    /// What a connection may hold in one direction, in bytes, and one block more. It depends on what is free, as the thresholds of switches
    /// do that share one memory among their queues (Choudhury and Hahne, 1998): those that hold most are stopped first, and if all hold
    /// as much as they may, about a fifth stays free, since blocks are about twice as large as what is in them.
    pub(crate) fn share(self) -> usize {
        if self.max_bytes == usize::MAX {
            return usize::MAX;
        }
        let share = self.free_bytes() / self.connections.max(CONNECTIONS_MIN);
        // Rounded, so that it seldom changes: others look at it.
        let unit = 1 << share.max(1).ilog2().saturating_sub(3);
        (share & !(unit - 1)).max(1)
    }

    pub(crate) fn free_bytes(self) -> usize {
        self.max_bytes.saturating_sub(self.live_bytes)
    }

    /// The level that comes behind `level`, if nothing was refused.
    pub(crate) fn level(self, level: MemoryLevel) -> MemoryLevel {
        let eighth = self.max_bytes / 8;
        // It takes a while to come back: not for a few bytes each time.
        let mark = if level == MemoryLevel::Normal { eighth * 7 } else { eighth * 6 };
        if self.live_bytes > mark { MemoryLevel::High } else { MemoryLevel::Normal }
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::PoolConfig;

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
    fn those_who_take_their_share_leave_some() {
        const MAX: usize = 256 << 20;
        for connections in [1, 10, 100, 1000, 10_000] {
            let mut live_bytes = 0;
            // Each holds what it may, and takes more when the share grows.
            for _ in 0..100 {
                let usage = Usage { live_bytes, max_bytes: MAX, connections, refusals: 0 };
                let wanted = 4 * connections * usage.share().min(1 << 20);
                live_bytes = live_bytes.max(wanted.min(live_bytes + (1 << 20)));
            }
            assert!(live_bytes < MAX / 8 * 7, "{connections} hold {live_bytes}");
        }
    }

    #[test]
    fn levels_do_not_flicker() {
        let at = |live_bytes| Usage { live_bytes, max_bytes: 800, connections: 0, refusals: 0 };
        use MemoryLevel::{High, Normal};
        assert_eq!(at(700).level(Normal), Normal);
        assert_eq!(at(701).level(Normal), High);
        assert_eq!(at(601).level(High), High);
        assert_eq!(at(600).level(High), Normal);
    }
}
