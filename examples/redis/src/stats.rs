//! What INFO tells.

use std::time::Instant;

pub(crate) struct Stats {
    pub(crate) started: Instant,
    pub(crate) connections: u64,
    pub(crate) commands: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) expired: u64,
}

impl Stats {
    pub(crate) fn new() -> Stats {
        let started = Instant::now();
        Stats { started, connections: 0, commands: 0, hits: 0, misses: 0, expired: 0 }
    }

    /// For CONFIG RESETSTAT.
    pub(crate) fn reset(&mut self) {
        *self = Stats { started: self.started, ..Stats::new() };
    }
}
