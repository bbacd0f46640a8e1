//! What has happened, counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) queries: Counter,
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    /// Misses that somebody had asked for already.
    pub(crate) joined: Counter,
    /// Tries that have brought no answer.
    pub(crate) upstream_failures: Counter,
    /// Datagrams of upstreams that were no answer to what was asked.
    pub(crate) upstream_strays: Counter,
    /// More than a source may ask.
    pub(crate) limited: Counter,
    /// Answered with SERVFAIL, since too much was going on.
    pub(crate) busy: Counter,
    /// Datagrams that the kernel had no room for.
    pub(crate) overflowed: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.load(Ordering::Relaxed).fmt(f)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "queries={} hits={} misses={} joined={} upstream_failures={} upstream_strays={} \
             limited={} busy={} overflowed={}",
            self.queries,
            self.hits,
            self.misses,
            self.joined,
            self.upstream_failures,
            self.upstream_strays,
            self.limited,
            self.busy,
            self.overflowed
        )
    }
}
