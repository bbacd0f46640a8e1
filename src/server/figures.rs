//! What a server counts, on all of its pollers at once.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::stats::{ServerPublished, ServerStats};

/// Pollers that count in a place of their own; with more of them some share one.
const SHARDS: usize = 16;

/// The figures of one server. Threads count side by side, and not in each other's cache lines.
#[derive(Debug, Default)]
pub(crate) struct Figures([Shard; SHARDS]);

/// Two cache lines, since processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(ServerPublished);

thread_local! {
    static SHARD: Cell<usize> = Cell::new({
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS
    });
}

impl Figures {
    #[inline]
    pub(crate) fn count_accept(&self) {
        count(&self.here().accepts);
    }

    /// It was accepted, and `on_prepare` or the engine did not let it in.
    pub(crate) fn count_refusal(&self) {
        count(&self.here().refused);
    }

    #[inline]
    pub(crate) fn count_request(&self) {
        count(&self.here().requests);
    }

    pub(crate) fn count_error(&self) {
        count(&self.here().handler_errors);
    }

    pub(crate) fn count_panic(&self) {
        count(&self.here().handler_panics);
    }

    pub(crate) fn read(&self) -> ServerStats {
        let mut sum = ServerStats::default();
        self.0.iter().for_each(|shard| sum += shard.0.read());
        sum
    }

    #[inline]
    fn here(&self) -> &ServerPublished {
        // Where a thread ends there is nothing of its own any more.
        &self.0[SHARD.try_with(Cell::get).unwrap_or(0)].0
    }
}

#[inline]
fn count(figure: &AtomicU64) {
    // Relaxed: a number by itself.
    figure.fetch_add(1, Ordering::Relaxed);
}
