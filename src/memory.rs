//! What the connections of pollers may hold in memory.

use std::fmt;
use std::sync::Arc;

use duopoll_core::{MemoryLevel, Pool, PoolConfig, WhenFull};

/// Called when a memory budget has come to another level.
pub(crate) type OnLevel = Arc<dyn Fn(MemoryLevel) + Send + Sync>;

/// What was said of the memory of pollers.
#[derive(Clone, Default)]
pub(crate) struct MemoryOptions {
    pub(crate) budget_bytes: Option<usize>,
    pub(crate) when_full: WhenFull,
    pub(crate) on_level: Option<OnLevel>,
}

impl MemoryOptions {
    /// The pool that those pollers share, unless it is the process's.
    pub(crate) fn pool(&self) -> Option<Pool> {
        let mut config = PoolConfig::default();
        config.max_live_bytes = self.budget_bytes?;
        Some(Pool::new(config))
    }
}

impl PartialEq for MemoryOptions {
    fn eq(&self, other: &MemoryOptions) -> bool {
        let callbacks = match (&self.on_level, &other.on_level) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        callbacks && (self.budget_bytes, self.when_full) == (other.budget_bytes, other.when_full)
    }
}

impl Eq for MemoryOptions {}

impl fmt::Debug for MemoryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryOptions")
            .field("budget_bytes", &self.budget_bytes)
            .field("when_full", &self.when_full)
            .finish_non_exhaustive()
    }
}
