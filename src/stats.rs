//! What the pollers have done.
//!
//! Each poller publishes its figures at the end of its turns, and whoever wants them reads them there: nobody waits.

use std::cell::Cell;
use std::fmt;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

use duopoll_core::{DirectSends, DriverStats, EngineStats, Pool};

/// What a figure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is as it is now.
    Gauge,
}

/// One of several figures, for a metrics endpoint: see [`Stats::figures`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figure {
    /// The name of the field, such as `received_bytes`.
    pub name: &'static str,
    /// What it says, in a few words.
    pub help: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// What it is.
    pub value: u64,
    /// It is the process's, or that of all pollers: none of them has it for itself, as in [`stats_of_each`](crate::Pollers::stats_of_each).
    pub is_shared: bool,
}

/// Figures that no poller has for itself: [`Stats::set_pool`] and [`Stats::set_process`] say what they are.
const SHARED: [&str; 6] = [
    "contained_panics",
    "memory_budget_bytes",
    "memory_held_bytes",
    "live_blocks",
    "live_block_bytes",
    "pooled_bytes",
];

/// A struct of figures, and one of atomics through which a thread publishes them.
macro_rules! figures {
    (
        $(#[doc = $about:expr])* $stats:ident, $cells:ident:
        $($(#[doc = $doc:expr])* $(#[cfg($cfg:meta)])? $name:ident: $kind:ident,)*
    ) => {
        $(#[doc = $about])*
        ///
        /// Its [`Display`](fmt::Display) is one line of JSON.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $stats {
            $($(#[doc = $doc])* $(#[cfg($cfg)])? pub $name: u64,)*
        }

        impl $stats {
            /// Each of them, with its name and kind.
            ///
            /// ```
            /// # use duopoll::Kind;
            /// # fn text(stats: duopoll::Stats) -> String {
            /// # let mut text = String::new();
            /// // As Prometheus reads it. The figures of a server need another prefix: some have the same names.
            /// for figure in stats.figures() {
            ///     let (kind, end) = match figure.kind {
            ///         Kind::Counter => ("counter", "_total"),
            ///         _ => ("gauge", ""),
            ///     };
            ///     let name = format!("duopoll_{}{end}", figure.name);
            ///     text += &format!("# HELP {name} {}\n# TYPE {name} {kind}\n", figure.help);
            ///     text += &format!("{name} {}\n", figure.value);
            /// }
            /// # text }
            /// ```
            pub fn figures(&self) -> impl Iterator<Item = Figure> + use<> {
                [$($(#[cfg($cfg)])? Figure {
                    name: stringify!($name),
                    help: concat!($($doc),*).trim_ascii(),
                    kind: Kind::$kind,
                    value: self.$name,
                    is_shared: SHARED.contains(&stringify!($name)),
                },)*]
                .into_iter()
            }
        }

        impl AddAssign for $stats {
            fn add_assign(&mut self, other: $stats) {
                $($(#[cfg($cfg)])? { self.$name += other.$name; })*
            }
        }

        impl fmt::Display for $stats {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{")?;
                for (index, figure) in self.figures().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}\"{}\": {}", figure.name, figure.value)?;
                }
                f.write_str("}")
            }
        }

        /// The same, for other threads to read while one writes.
        #[derive(Debug, Default)]
        pub(crate) struct $cells {
            $($(#[cfg($cfg)])? pub(crate) $name: AtomicU64,)*
        }

        // Relaxed: each figure stands for itself.
        impl $cells {
            pub(crate) fn read(&self) -> $stats {
                $stats { $($(#[cfg($cfg)])? $name: self.$name.load(Ordering::Relaxed),)* }
            }

            /// For the one thread that does.
            #[allow(dead_code, reason = "some are counted one by one")]
            #[inline]
            pub(crate) fn write(&self, stats: &$stats) {
                $($(#[cfg($cfg)])? { self.$name.store(stats.$name, Ordering::Relaxed); })*
            }
        }
    };
}

figures! {
    /// What one poller, or several together, have done since they started, as of the end of their last turns.
    Stats, Published:
    /// Pollers that these figures are of.
    pollers: Gauge,
    /// Pollers that have ended by themselves, since their engine broke or a waker panicked.
    failed_pollers: Counter,
    /// Connections that were accepted.
    accepts: Counter,
    /// Connections that were registered.
    connections: Counter,
    /// Connections that are over.
    closed: Counter,
    /// Connections that are open: closed by nobody, as far as this side knows.
    open_connections: Gauge,
    /// Connections that were closed by force, with something left to do.
    forced: Counter,
    /// Connections that were closed by this side and whose peer did not close its own within a second.
    close_timeouts: Counter,
    /// Times that accepting was put off because the process or the machine ran out of something.
    accept_backoffs: Counter,
    /// Connections that were gone before they could be accepted.
    accept_aborts: Counter,
    /// Connections that were ended because no byte had moved for too long.
    idle_timeouts: Counter,
    /// Times that a connection was received from no longer because it held its share of the memory budget.
    memory_stops: Counter,
    /// Times that accepting was put off because memory was short.
    memory_pauses: Counter,
    /// Reads that have failed because what they waited for did not fit into the memory that was left.
    memory_refusals: Counter,
    /// Connections that were reset because their peers did not read and memory was used up.
    memory_resets: Counter,
    /// Receives that the kernel completed.
    receives: Counter,
    /// Sends that the kernel completed.
    sends: Counter,
    /// Sends that the kernel took in part, or not at all.
    short_sends: Counter,
    /// Bytes received.
    received_bytes: Counter,
    /// Bytes sent.
    sent_bytes: Counter,
    /// System calls of the engines, waits included.
    syscalls: Counter,
    /// Waits: `epoll_wait`, or `io_uring_enter`.
    waits: Counter,
    /// Wake-ups from other threads.
    wakeups: Counter,
    /// Events for connections that were gone.
    stale_events: Counter,
    /// Waits after which the kernel still kept completions for which their queue had no room.
    completion_overflows: Counter,
    /// Receives that found none of the buffers that a poller's streams share, and were taken up again.
    buffer_shortages: Counter,
    /// Times that a task was run.
    task_polls: Counter,
    /// Requests that a handler was called for.
    requests: Counter,
    /// Handlers that ended their connection with an error.
    handler_errors: Counter,
    /// Handlers that panicked.
    handler_panics: Counter,
    /// Sends without a copy that the kernel took.
    #[cfg(feature = "zerocopy")]
    zerocopy_sends: Counter,
    /// Bytes that left without a copy.
    #[cfg(feature = "zerocopy")]
    zerocopy_bytes: Counter,
    /// Bytes that were to leave without a copy, and that the kernel copied all the same.
    #[cfg(feature = "zerocopy")]
    zerocopy_copied_bytes: Counter,
    /// Sends without a copy that the kernel refused, and that went out with one.
    #[cfg(feature = "zerocopy")]
    zerocopy_fallbacks: Counter,
    /// Bytes that the kernel reads from without a copy.
    #[cfg(feature = "zerocopy")]
    zerocopy_pinned_bytes: Gauge,
    /// Timers that are set.
    timers: Gauge,
    /// Panics of the process's wakers, callbacks and destructors that ended nothing but their own.
    contained_panics: Counter,
    /// The memory budget that these pollers share, in bytes.
    memory_budget_bytes: Gauge,
    /// What is used of it, in bytes.
    memory_held_bytes: Gauge,
    /// Blocks that are in use of the pool that these pollers share, the process's or that of their budget.
    live_blocks: Gauge,
    /// Bytes of the blocks that are in use.
    live_block_bytes: Gauge,
    /// Bytes that wait in that pool for their next use.
    pooled_bytes: Gauge,
}

figures! {
    /// What one server has done since it started, on all of its pollers.
    ServerStats, ServerPublished:
    /// Connections that were accepted.
    accepts: Counter,
    /// Connections that are open.
    open_connections: Gauge,
    /// Connections that wait for a place among those that may be open.
    waiting_connections: Gauge,
    /// Connections that `on_prepare` or the engine has refused.
    refused: Counter,
    /// Requests that a handler of `on_request` was called for.
    requests: Counter,
    /// Handlers that ended their connection with an error.
    handler_errors: Counter,
    /// Handlers and callbacks that panicked.
    handler_panics: Counter,
}

thread_local! {
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
    static HANDLER_ERRORS: Cell<u64> = const { Cell::new(0) };
    static HANDLER_PANICS: Cell<u64> = const { Cell::new(0) };
}

/// A poller begins to run on this thread.
pub(crate) fn begin() {
    REQUESTS.set(0);
    HANDLER_ERRORS.set(0);
    HANDLER_PANICS.set(0);
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

    /// What went past the engine.
    pub(crate) fn add_direct(&mut self, direct: DirectSends) {
        self.sends += direct.calls;
        self.short_sends += direct.short;
        self.sent_bytes += direct.bytes;
        self.syscalls += direct.calls;
    }

    pub(crate) fn add_driver(&mut self, driver: DriverStats) {
        self.connections += driver.connections;
        self.closed += driver.closed;
        self.forced += driver.forced;
        self.close_timeouts += driver.close_timeouts;
        self.accept_backoffs += driver.accept_backoffs;
        self.accept_aborts += driver.accept_aborts;
        self.idle_timeouts += driver.idle_timeouts;
        self.memory_stops += driver.memory_stops;
        self.memory_pauses += driver.memory_pauses;
        self.memory_refusals += driver.memory_refusals;
        self.memory_resets += driver.memory_resets;
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

    /// The figures of the pool that the pollers share.
    pub(crate) fn set_pool(&mut self, pool: &Pool) {
        self.memory_budget_bytes = pool.max_live_bytes() as u64;
        let pool = pool.stats();
        self.memory_held_bytes = pool.live_bytes as u64;
        self.live_blocks = pool.live_blocks as u64;
        self.live_block_bytes = pool.live_bytes as u64;
        self.pooled_bytes = pool.pooled_bytes as u64;
    }

    /// The figures of the process.
    pub(crate) fn set_process(&mut self) {
        self.contained_panics = duopoll_core::contained_panics();
    }
}
