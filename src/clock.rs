//! The time of a poller: that of the machine, until a test pauses it.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duopoll_core::{Clock, Tick};

/// It is not paused.
const RUNS: u64 = u64::MAX;

const NANOS_PER_TICK: u64 = 1_000_000;

/// It stands no later than that: 292 years.
const FARTHEST: u64 = i64::MAX as u64 / NANOS_PER_TICK * NANOS_PER_TICK;

/// The clock of a poller: milliseconds since it was made. Clones are the same clock.
#[derive(Clone, Debug)]
pub(crate) struct PollerClock(Arc<State>);

#[derive(Debug)]
struct State {
    origin: Instant,
    /// Nanoseconds since the origin at which it stands, or [`RUNS`].
    stands_at: AtomicU64,
    /// Nanoseconds that it is ahead of the machine's, or behind, since it stood.
    ahead: AtomicI64,
    /// To where it is moved, while it stands: nanoseconds since the origin.
    targets: Mutex<Vec<u64>>,
    /// Work elsewhere during which it does not move by itself.
    busy: AtomicUsize,
}

// Relaxed throughout: a clock is paused and moved on its poller's thread, and each figure stands for itself.
impl PollerClock {
    pub(crate) fn new() -> PollerClock {
        PollerClock(Arc::new(State {
            origin: Instant::now(),
            stands_at: AtomicU64::new(RUNS),
            ahead: AtomicI64::new(0),
            targets: Mutex::default(),
            busy: AtomicUsize::new(0),
        }))
    }

    /// What it shows, as a point in time.
    pub(crate) fn instant(&self) -> Instant {
        self.0.origin + Duration::from_nanos(self.nanos())
    }

    pub(crate) fn instant_of(&self, tick: Tick) -> Instant {
        self.0.origin + Duration::from_millis(tick)
    }

    /// What it will show at a time of the machine's, if it goes on like that.
    pub(crate) fn translate(&self, instant: Instant) -> Instant {
        let ahead = match self.0.stands_at.load(Ordering::Relaxed) {
            RUNS => self.0.ahead.load(Ordering::Relaxed),
            stands_at => stands_at as i64 - self.0.origin.elapsed().as_nanos() as i64,
        };
        let distance = Duration::from_nanos(ahead.unsigned_abs());
        if ahead >= 0 {
            instant + distance
        } else {
            instant.checked_sub(distance).unwrap_or(instant)
        }
    }

    #[inline]
    fn nanos(&self) -> u64 {
        match self.0.stands_at.load(Ordering::Relaxed) {
            RUNS => {
                let elapsed = self.0.origin.elapsed().as_nanos() as u64;
                elapsed.saturating_add_signed(self.0.ahead.load(Ordering::Relaxed))
            }
            stands_at => stands_at,
        }
    }

    pub(crate) fn stands(&self) -> bool {
        self.0.stands_at.load(Ordering::Relaxed) != RUNS
    }

    /// Has it stand where it is, at the next tick: what is waited for from there on ends when it should.
    pub(crate) fn pause(&self) {
        let stands_at = self.nanos().next_multiple_of(NANOS_PER_TICK);
        self.0.stands_at.store(stands_at, Ordering::Relaxed);
    }

    /// Has it go on from where it stands.
    pub(crate) fn resume(&self) {
        let elapsed = self.0.origin.elapsed().as_nanos() as i64;
        let ahead = (self.nanos() as i64).saturating_sub(elapsed);
        self.0.ahead.store(ahead, Ordering::Relaxed);
        self.0.stands_at.store(RUNS, Ordering::Relaxed);
    }

    /// Has it be moved to that point by its poller, timer by timer, for as long as somebody has what this gives.
    pub(crate) fn aim(&self, target: Instant) -> Aim {
        // A timer goes off at a tick.
        let nanos = self.tick_of(target).saturating_mul(NANOS_PER_TICK).min(FARTHEST);
        self.0.targets().push(nanos);
        Aim { clock: self.clone(), nanos }
    }

    /// Whether somebody moves it.
    pub(crate) fn is_moved(&self) -> bool {
        self.stands() && !self.0.targets().is_empty()
    }

    /// Moves it to the next of what is due, or as far as it is to be moved. Where nobody moves it, it does that only if `idle`.
    /// False if it stays where it is.
    pub(crate) fn step(&self, next: Option<Tick>, idle: bool) -> bool {
        let (now, target) = (self.nanos(), self.0.targets().iter().copied().max().unwrap_or(0));
        let next = next.map(|tick| tick.saturating_mul(NANOS_PER_TICK));
        let to = if target > now {
            next.map_or(target, |next| next.min(target))
        } else if let (Some(next), true) = (next, idle && self.0.busy.load(Ordering::Relaxed) == 0)
        {
            next
        } else {
            return false;
        };
        self.0.stands_at.store(to.clamp(now, FARTHEST), Ordering::Relaxed);
        true
    }

    /// Somebody works for this poller elsewhere: until [`rest`](PollerClock::rest), it does not move by itself.
    pub(crate) fn work(&self) {
        self.0.busy.fetch_add(1, Ordering::Relaxed);
    }

    /// He has finished.
    pub(crate) fn rest(&self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    fn targets(&self) -> MutexGuard<'_, Vec<u64>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who has a clock moved.
pub(crate) struct Aim {
    clock: PollerClock,
    nanos: u64,
}

impl Drop for Aim {
    fn drop(&mut self) {
        let mut targets = self.clock.0.targets();
        if let Some(place) = targets.iter().position(|target| *target == self.nanos) {
            targets.swap_remove(place);
        }
    }
}

impl Clock for PollerClock {
    fn now(&self) -> Tick {
        self.nanos() / NANOS_PER_TICK
    }

    fn tick_of(&self, instant: Instant) -> Tick {
        let since = instant.saturating_duration_since(self.0.origin);
        let part = since.subsec_nanos().div_ceil(NANOS_PER_TICK as u32);
        since.as_secs().saturating_mul(1000).saturating_add(u64::from(part))
    }

    fn is_real(&self) -> bool {
        !self.stands()
    }
}
