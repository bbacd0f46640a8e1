//! What the pollers have done.

use std::cell::Cell;
use std::fmt;
use std::ops::AddAssign;

use duopoll_core::{DriverStats, EngineStats, Pool};

macro_rules! stats {
    ($($(#[doc = $doc:expr])* $(#[cfg($cfg:meta)])? $name:ident,)*) => {
        /// Counters of one poller, or of several added up, since they started.
        ///
        /// Its [`Display`](fmt::Display) is one line of JSON.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $doc])* $(#[cfg($cfg)])? pub $name: u64,)*
        }

        impl AddAssign for Stats {
            fn add_assign(&mut self, other: Stats) {
                $($(#[cfg($cfg)])? { self.$name += other.$name; })*
            }
        }

        impl fmt::Display for Stats {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let fields = [$($(#[cfg($cfg)])? (stringify!($name), self.$name),)*];
                f.write_str("{")?;
                for (index, (name, value)) in fields.into_iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}\"{name}\": {value}")?;
                }
                f.write_str("}")
            }
        }
    };
}

stats! {
    /// Pollers that these figures are of.
    pollers,
    /// Pollers that have ended by themselves, since their engine broke or a waker panicked.
    failed_pollers,
    /// Connections that were accepted.
    accepts,
    /// Connections that were registered.
    connections,
    /// Connections that are over.
    closed,
    /// Connections that were closed by force, with something left to do.
    forced,
    /// Connections that were closed by this side and whose peer did not close its own within a second.
    close_timeouts,
    /// Times that accepting was put off because the process or the machine ran out of something.
    accept_backoffs,
    /// Connections that were gone before they could be accepted.
    accept_aborts,
    /// Connections that were ended because no byte had moved for too long.
    idle_timeouts,
    /// Receives that the kernel completed.
    receives,
    /// Sends that the kernel completed.
    sends,
    /// Sends that the kernel took in part, or not at all.
    short_sends,
    /// Bytes received.
    received_bytes,
    /// Bytes sent.
    sent_bytes,
    /// System calls of the engines, waits included.
    syscalls,
    /// Waits: `epoll_wait`, or `io_uring_enter`.
    waits,
    /// Wake-ups from other threads.
    wakeups,
    /// Events for connections that were gone.
    stale_events,
    /// Waits after which the kernel still kept completions for which their queue had no room.
    completion_overflows,
    /// Receives that found none of the buffers that a poller's streams share, and were taken up again.
    buffer_shortages,
    /// Times that a task was run.
    task_polls,
    /// Requests handled.
    requests,
    /// Handlers that ended their connection with an error.
    handler_errors,
    /// Handlers that panicked.
    handler_panics,
    /// Sends without a copy that the kernel took.
    #[cfg(feature = "zerocopy")]
    zerocopy_sends,
    /// Bytes that left without a copy.
    #[cfg(feature = "zerocopy")]
    zerocopy_bytes,
    /// Bytes that were to leave without a copy, and that the kernel copied all the same.
    #[cfg(feature = "zerocopy")]
    zerocopy_copied_bytes,
    /// Sends without a copy that the kernel refused, and that went out with one.
    #[cfg(feature = "zerocopy")]
    zerocopy_fallbacks,
    /// Bytes that the kernel reads from without a copy, at the time of the snapshot.
    #[cfg(feature = "zerocopy")]
    zerocopy_pinned_bytes,
    /// Timers that are set, at the time of the snapshot.
    timers,
    /// Blocks of the process's pool that are in use, at the time of the snapshot.
    live_blocks,
    /// Their bytes.
    live_block_bytes,
    /// Bytes that wait in the process's pool.
    pooled_bytes,
}

thread_local! {
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
    static HANDLER_ERRORS: Cell<u64> = const { Cell::new(0) };
    static HANDLER_PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Counts a request handled on this thread.
pub(crate) fn count_request() {
    REQUESTS.set(REQUESTS.get() + 1);
}

/// Counts a handler that failed on this thread.
pub(crate) fn count_handler_error() {
    HANDLER_ERRORS.set(HANDLER_ERRORS.get() + 1);
}

/// Counts a handler that panicked on this thread.
pub(crate) fn count_handler_panic() {
    HANDLER_PANICS.set(HANDLER_PANICS.get() + 1);
}

impl Stats {
    pub(crate) fn add_engine(&mut self, engine: EngineStats) {
        self.accepts += engine.accepts;
        self.receives += engine.receives;
        self.sends += engine.sends;
        self.short_sends += engine.short_sends;
        self.received_bytes += engine.received_bytes;
        self.sent_bytes += engine.sent_bytes;
        self.syscalls += engine.syscalls;
        self.waits += engine.waits;
        self.wakeups += engine.wakeups;
        self.stale_events += engine.stale_events;
        self.completion_overflows += engine.completion_overflows;
        self.buffer_shortages += engine.buffer_shortages;
    }

    pub(crate) fn add_driver(&mut self, driver: DriverStats) {
        self.connections += driver.connections;
        self.closed += driver.closed;
        self.forced += driver.forced;
        self.close_timeouts += driver.close_timeouts;
        self.accept_backoffs += driver.accept_backoffs;
        self.accept_aborts += driver.accept_aborts;
        self.idle_timeouts += driver.idle_timeouts;
        #[cfg(feature = "zerocopy")]
        {
            self.zerocopy_sends += driver.zerocopy_sends;
            self.zerocopy_bytes += driver.zerocopy_bytes;
            self.zerocopy_copied_bytes += driver.zerocopy_copied_bytes;
            self.zerocopy_fallbacks += driver.zerocopy_fallbacks;
            self.zerocopy_pinned_bytes += driver.zerocopy_pinned_bytes;
        }
    }

    /// What the handlers of this thread's connections have done.
    pub(crate) fn add_handlers(&mut self) {
        self.requests += REQUESTS.get();
        self.handler_errors += HANDLER_ERRORS.get();
        self.handler_panics += HANDLER_PANICS.get();
    }

    /// The figures of the process's pool, which belong to no poller.
    pub(crate) fn set_pool(&mut self) {
        let pool = Pool::global().stats();
        self.live_blocks = pool.live_blocks as u64;
        self.live_block_bytes = pool.live_bytes as u64;
        self.pooled_bytes = pool.pooled_bytes as u64;
    }
}
