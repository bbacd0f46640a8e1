//! The time of a poller.

use std::time::{Duration, Instant};

use duopoll_core::{Clock, Tick};

/// The clock of a poller: milliseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Monotonic {
    origin: Instant,
}

impl Monotonic {
    pub(crate) fn new() -> Monotonic {
        Monotonic { origin: Instant::now() }
    }

    pub(crate) fn instant_of(&self, tick: Tick) -> Instant {
        self.origin + Duration::from_millis(tick)
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Tick {
        self.origin.elapsed().as_millis() as Tick
    }

    fn tick_of(&self, instant: Instant) -> Tick {
        let since = instant.saturating_duration_since(self.origin);
        Tick::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(Tick::MAX)
    }
}
