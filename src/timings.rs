//! How long things take on a poller: its turns, the handlers in them, and how late its timers are.
//!
//! Measured only where it is asked for ([`PollerOptions::timings`](crate::PollerOptions::timings)): a poller then reads the clock twice a
//! turn and once a task. It counts in buckets of its own, and whoever wants them reads them there.

use std::cell::Cell;
use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Buckets for each doubling.
const PARTS_BITS: u32 = 2;
const PARTS: u64 = 1 << PARTS_BITS;
/// What is larger, 18 minutes in nanoseconds, is in the last bucket.
const BITS_MAX: u32 = 40;
const BUCKETS: usize = ((BITS_MAX - PARTS_BITS + 1) as usize) << PARTS_BITS;

/// After a slow task was told of, others are only counted for so long.
const SLOW_QUIET: Duration = Duration::from_secs(1);

thread_local! {
    /// The connection whose handler was polled last on this thread; 0 for none.
    static HANDLED: Cell<u64> = const { Cell::new(0) };
}

/// A handler of this connection is being polled.
#[inline]
pub(crate) fn handles(connection: u64) {
    HANDLED.set(connection);
}

/// How often something was how large: each bucket is at most a quarter wider than the one before.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    sum: u64,
}

impl Histogram {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// A value that this share of them does not exceed, by a quarter too much at most: 0.5 for the median. 0 if there are none.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (share.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.buckets().find(|(_, count)| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0, |(bound, _)| bound)
    }

    /// The buckets in which there is something: the largest value that each takes, and how many it has.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(bucket, count)| (bound(bucket), *count))
    }

    /// What has come since `before`, of the same poller.
    #[cfg(feature = "metrics")]
    pub(crate) fn since(&self, before: Option<&Histogram>) -> Histogram {
        let mut since = self.clone();
        if let Some(before) = before {
            since.sum = since.sum.wrapping_sub(before.sum);
            for (count, before) in since.counts.iter_mut().zip(before.counts.iter()) {
                *count = count.saturating_sub(*before);
            }
        }
        since
    }
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: Box::new([0; BUCKETS]), sum: 0 }
    }
}

impl AddAssign<&Histogram> for Histogram {
    fn add_assign(&mut self, other: &Histogram) {
        self.sum = self.sum.wrapping_add(other.sum);
        for (count, other) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count += other;
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("median", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.quantile(1.0))
            .finish_non_exhaustive()
    }
}

/// In which bucket a value is.
#[inline]
fn bucket(value: u64) -> usize {
    let value = value.min((1 << BITS_MAX) - 1);
    if value < PARTS {
        return value as usize;
    }
    let doublings = value.ilog2() - PARTS_BITS;
    (((doublings + 1) << PARTS_BITS) as u64 + ((value >> doublings) & (PARTS - 1))) as usize
}

/// The largest value in a bucket.
fn bound(bucket: usize) -> u64 {
    let (row, part) = (bucket as u64 >> PARTS_BITS, bucket as u64 & (PARTS - 1));
    match row {
        0 => part,
        _ => ((PARTS + part + 1) << (row - 1)) - 1,
    }
}

/// What was measured on one poller, or on several together. Times are in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// How long a turn takes, from where its wait is over to the next: so long may a connection wait for its poller.
    pub turns: Histogram,
    /// Tasks that were polled in a turn, handlers among them; turns without any do not count.
    pub batches: Histogram,
    /// How long a poll of a task takes: a handler, between two of its waits.
    pub polls: Histogram,
    /// How late timers were looked at, in turns in which one was due. Timers have a resolution of a millisecond.
    pub lags: Histogram,
}

/// One of the histograms of [`Timings`], for whoever tells them elsewhere.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Timing<'a> {
    /// The name, with its unit, as Prometheus has them: `turn_seconds`.
    pub name: &'static str,
    /// What it says, in a few words.
    pub help: &'static str,
    /// Of its unit so much is one of the histogram's: 1e-9 where that counts nanoseconds.
    pub scale: f64,
    /// What was measured.
    pub values: &'a Histogram,
}

impl Timings {
    /// All of them.
    pub fn each(&self) -> [Timing<'_>; 4] {
        let seconds = |name, help, values| Timing { name, help, scale: 1e-9, values };
        [
            seconds("turn_seconds", "How long a turn of a poller takes.", &self.turns),
            seconds("poll_seconds", "How long a poll of a task takes.", &self.polls),
            seconds("lag_seconds", "How late timers are looked at.", &self.lags),
            Timing {
                name: "batch",
                help: "Tasks that are polled in a turn.",
                scale: 1.0,
                values: &self.batches,
            },
        ]
    }
}

impl AddAssign<&Timings> for Timings {
    fn add_assign(&mut self, other: &Timings) {
        self.turns += &other.turns;
        self.batches += &other.batches;
        self.polls += &other.polls;
        self.lags += &other.lags;
    }
}

/// The same, while it is written by one thread.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    turns: Cells,
    batches: Cells,
    polls: Cells,
    lags: Cells,
}

impl Measured {
    pub(crate) fn read(&self) -> Timings {
        Timings {
            turns: self.turns.read(),
            batches: self.batches.read(),
            polls: self.polls.read(),
            lags: self.lags.read(),
        }
    }
}

#[derive(Debug)]
struct Cells {
    counts: Box<[AtomicU64; BUCKETS]>,
    sum: AtomicU64,
}

// Relaxed: each stands for itself.
impl Cells {
    /// For the one thread that does.
    #[inline]
    fn record(&self, value: u64) {
        let add = |cell: &AtomicU64, more: u64| {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        };
        add(&self.counts[bucket(value)], 1);
        add(&self.sum, value);
    }

    fn read(&self) -> Histogram {
        let mut histogram =
            Histogram { sum: self.sum.load(Ordering::Relaxed), ..Histogram::default() };
        for (count, cell) in histogram.counts.iter_mut().zip(self.counts.iter()) {
            *count = cell.load(Ordering::Relaxed);
        }
        histogram
    }
}

impl Default for Cells {
    fn default() -> Cells {
        Cells { counts: Box::new([const { AtomicU64::new(0) }; BUCKETS]), sum: AtomicU64::new(0) }
    }
}

/// What is to be measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TimingOptions {
    pub(crate) measures: bool,
    /// A task that holds its poller for longer is told of.
    pub(crate) slow: Option<Duration>,
}

/// The poller's own, while it measures.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    measured: Arc<Measured>,
    slow: Option<Duration>,
    turn_began: Instant,
    /// When the last poll of a task ended.
    mark: Instant,
    batch: u64,
    /// A slow task was told of, and others since.
    told: Option<(Instant, u64)>,
}

/// A task that has held its poller for too long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slow {
    /// Whose handler it is; 0 for none.
    pub(crate) connection: u64,
    pub(crate) took: Duration,
    /// Of so many others nothing was said since the last one.
    pub(crate) untold: u64,
}

impl Stopwatch {
    pub(crate) fn new(options: TimingOptions) -> Option<Box<Stopwatch>> {
        let TimingOptions { measures, slow } = options;
        let now = Instant::now();
        (measures || slow.is_some()).then(|| {
            Box::new(Stopwatch {
                measured: Arc::default(),
                slow,
                turn_began: now,
                mark: now,
                batch: 0,
                told: None,
            })
        })
    }

    pub(crate) fn measured(&self) -> Arc<Measured> {
        self.measured.clone()
    }

    /// The wait is over.
    pub(crate) fn turn_begins(&mut self) {
        self.turn_began = Instant::now();
    }

    /// A timer is looked at so much later than it was due.
    pub(crate) fn timer_was_due(&self, ago: Duration) {
        self.measured.lags.record(nanos(ago));
    }

    /// Tasks are about to be polled.
    pub(crate) fn tasks_begin(&mut self) {
        self.mark = Instant::now();
        HANDLED.set(0);
    }

    /// One was polled. What there is to say of it.
    pub(crate) fn polled(&mut self) -> Option<Slow> {
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.mark, now);
        self.batch += 1;
        self.measured.polls.record(nanos(took));
        let connection = HANDLED.take();
        if self.slow.is_none_or(|slow| took <= slow) {
            return None;
        }
        if let Some((told, untold)) = &mut self.told {
            if now - *told < SLOW_QUIET {
                *untold += 1;
                return None;
            }
        }
        let untold = self.told.replace((now, 0)).map_or(0, |(_, untold)| untold);
        Some(Slow { connection, took, untold })
    }

    /// The next task begins now, and not when the last one ended.
    pub(crate) fn goes_on(&mut self) {
        self.mark = Instant::now();
    }

    /// It is about to wait again.
    pub(crate) fn turn_ends(&mut self) {
        self.measured.turns.record(nanos(self.turn_began.elapsed()));
        match std::mem::take(&mut self.batch) {
            0 => {}
            batch => self.measured.batches.record(batch),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_the_bucket_that_its_bound_says() {
        let mut last = 0;
        for bucket_number in 0..BUCKETS {
            let bound = bound(bucket_number);
            assert_eq!(bucket(bound), bucket_number, "{bound}");
            assert!(bucket_number == 0 || bucket(last + 1) == bucket_number, "{last}");
            assert!(bucket_number <= 4 || bound as f64 <= last as f64 * 1.26 + 1.0, "{bound}");
            last = bound;
        }
        assert_eq!(last, (1 << BITS_MAX) - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_at_most_a_quarter_too_large() {
        let cells = Cells::default();
        (1..=1000).for_each(|value| cells.record(value));
        let histogram = cells.read();
        assert_eq!((histogram.count(), histogram.sum()), (1000, 500_500));
        for (share, exact) in [(0.0, 1), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let told = histogram.quantile(share);
            assert!(told >= exact && told <= exact + exact / 4, "{share}: {told}");
        }
        let mut twice = histogram.clone();
        twice += &histogram;
        assert_eq!(twice.count(), 2000);
        assert_eq!(Histogram::default().quantile(0.5), 0);
    }
}
