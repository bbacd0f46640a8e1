//! Virtual time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use duopoll_core::{Clock, Tick};

/// Microseconds since the beginning of the world. Finer than the driver's ticks, so that rounding shows.
pub(crate) type Micros = u64;

/// A clock that moves when it is told to.
#[derive(Debug)]
pub(crate) struct SimClock {
    origin: Instant,
    now: AtomicU64,
}

impl SimClock {
    /// Somewhere within a tick.
    pub(crate) fn new(now: Micros) -> Arc<SimClock> {
        Arc::new(SimClock { origin: Instant::now(), now: AtomicU64::new(now) })
    }

    pub(crate) fn micros(&self) -> Micros {
        self.now.load(Ordering::Relaxed)
    }

    pub(crate) fn advance_to(&self, at: Micros) {
        self.now.fetch_max(at, Ordering::Relaxed);
    }

    pub(crate) fn instant(&self, at: Micros) -> Instant {
        self.origin + Duration::from_micros(at)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Tick {
        self.micros() / 1000
    }

    fn tick_of(&self, instant: Instant) -> Tick {
        let since = instant.saturating_duration_since(self.origin);
        since.as_nanos().div_ceil(1_000_000) as Tick
    }
}

/// Wakers that are due at a time.
#[derive(Debug, Default)]
pub(crate) struct Alarms(RefCell<Vec<(Micros, Waker)>>);

impl Alarms {
    pub(crate) fn set(&self, at: Micros, waker: Waker) {
        self.0.borrow_mut().push((at, waker));
    }

    pub(crate) fn next(&self) -> Option<Micros> {
        self.0.borrow().iter().map(|(at, _)| *at).min()
    }

    pub(crate) fn ring(&self, now: Micros) {
        self.0.borrow_mut().retain(|(at, waker)| {
            if *at <= now {
                waker.wake_by_ref();
            }
            *at > now
        });
    }
}

/// For so many turns timers may wait for what had come.
const HELD_TURNS: u32 = 64;

/// Who sleeps on the poller's own timers, and until when.
#[derive(Debug, Default)]
pub(crate) struct Sleeps {
    until: RefCell<BTreeMap<usize, (Micros, u32)>>,
    /// Timers are known as long as this stays the same.
    pub(crate) epoch: Cell<u64>,
    /// The poller has ended, and its timers with it.
    pub(crate) over: Cell<bool>,
}

impl Sleeps {
    pub(crate) fn set(&self, task: usize, until: Option<Micros>) {
        let mut all = self.until.borrow_mut();
        match until {
            Some(until) => all.insert(task, (until, 0)),
            None => all.remove(&task),
        };
    }

    /// At the end of a turn that began then: nobody sleeps longer than to his tick, but for some turns if the poller was held up and
    /// had not heard of everything.
    pub(crate) fn check(&self, began: Micros, asleep: impl Fn(usize) -> bool) {
        for (task, (until, turns)) in &mut *self.until.borrow_mut() {
            let over = until.next_multiple_of(1000) <= began / 1000 * 1000;
            if over && asleep(*task) {
                *turns += 1;
            }
            assert!(*turns <= HELD_TURNS, "task {task} sleeps at {began}, until {until}");
        }
    }
}
