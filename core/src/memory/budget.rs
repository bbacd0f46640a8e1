//! How much of a pool may be in use, and what of it a connection may hold.

use crate::sync::{AtomicUsize, Ordering};

/// The limit of a pool, and who shares it.
pub(super) struct Budget {
    pub(super) max_bytes: AtomicUsize,
    /// Requests that were refused, by the limit or by the kernel.
    pub(super) refusals: AtomicUsize,
    /// Connections that hold blocks of the pool, or may.
    pub(super) connections: AtomicUsize,
    /// The [`MemoryLevel`] that was told last.
    pub(super) told: AtomicUsize,
}

/// How much of a memory budget is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum MemoryLevel {
    /// Less than the first mark, which is seven eighths of the budget.
    #[default]
    Normal,
    /// More than that, and until it is less than three quarters: connections are accepted slowly.
    High,
    /// Something was refused a moment ago.
    Full,
}

/// As if there were at least so many connections.
const CONNECTIONS_MIN: usize = 8;
/// What a connection holds at worst, in shares.
const SHARES: usize = 8;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) live_bytes: usize,
    pub(crate) max_bytes: usize,
    pub(crate) connections: usize,
    pub(crate) refusals: usize,
}

impl Usage {
    /// What a connection may hold in one direction, in bytes, and one block more. It depends on what is free, as the thresholds of switches
    /// do that share one memory among their queues (Choudhury and Hahne, 1998): those that hold most are stopped first, and if all hold
    /// as much as they may, a good part stays free: a connection has two directions, the writer is given at once what the reader had, and
    /// blocks are about twice as large as what is in them.
    pub(crate) fn share(self) -> usize {
        if self.max_bytes == usize::MAX {
            return usize::MAX;
        }
        let share = self.free_bytes() / (SHARES * self.connections.max(CONNECTIONS_MIN));
        // Rounded, so that it seldom changes: others look at it.
        let unit = 1 << share.max(1).ilog2().saturating_sub(3);
        (share & !(unit - 1)).max(1)
    }

    pub(crate) fn free_bytes(self) -> usize {
        self.max_bytes.saturating_sub(self.live_bytes)
    }

    /// Whether less than an eighth is left.
    pub(crate) fn is_nearly_full(self) -> bool {
        self.free_bytes() < self.max_bytes / 8
    }

    /// The level that comes behind `level`, if nothing was refused.
    pub(crate) fn level(self, level: MemoryLevel) -> MemoryLevel {
        let eighth = self.max_bytes / 8;
        // It takes a while to come back: not for a few bytes each time.
        let mark = if level == MemoryLevel::Normal { eighth * 7 } else { eighth * 6 };
        if self.live_bytes > mark { MemoryLevel::High } else { MemoryLevel::Normal }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn those_who_take_their_share_leave_some() {
        const MAX: usize = 256 << 20;
        for connections in [1, 10, 100, 1000, 10_000] {
            let mut live_bytes = 0;
            // Each holds what it may, and takes more when the share grows.
            for _ in 0..100 {
                let usage = Usage { live_bytes, max_bytes: MAX, connections, refusals: 0 };
                let wanted = 6 * connections * usage.share().min(1 << 20);
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
