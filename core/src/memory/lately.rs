//! How much was in use lately: so much may wait where somebody looks again.
//!
//! A server that has 16 responses of a mebibyte in flight, and then none, and then 16 again, needs as much memory again a
//! moment later. With a fixed bound on what waits it was unmapped and mapped each time.

use crate::sync::{AtomicUsize, Ordering};

/// The most that was in use, in bytes, in this period and in the last.
pub(super) struct Lately {
    peak: AtomicUsize,
    last_peak: AtomicUsize,
    /// The number of the period.
    period: AtomicUsize,
}

impl Lately {
    pub(super) fn new() -> Lately {
        Lately {
            peak: AtomicUsize::new(0),
            last_peak: AtomicUsize::new(0),
            period: AtomicUsize::new(0),
        }
    }

    /// So much is in use. Says whether it is more than before in this period.
    #[inline]
    pub(super) fn saw(&self, live_bytes: usize) -> bool {
        let more = live_bytes > self.peak.load(Ordering::Relaxed);
        if more {
            self.peak.fetch_max(live_bytes, Ordering::Relaxed);
        }
        more
    }

    pub(super) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed).max(self.last_peak.load(Ordering::Relaxed))
    }

    /// Begins a period, unless another one has begun since `known` was: of several pollers that look in intervals
    /// of the same length one begins all periods. Gives the number of the one that is now.
    pub(super) fn begin_period(&self, known: usize, live_bytes: usize) -> usize {
        let next = known.wrapping_add(1);
        let order = Ordering::Relaxed;
        match self.period.compare_exchange(known, next, order, order) {
            Ok(_) => {
                self.last_peak.store(self.peak.swap(live_bytes, order), order);
                next
            }
            Err(period) => period,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_forgotten_after_two_periods() {
        let lately = Lately::new();
        assert!(lately.saw(100));
        assert!(!lately.saw(40));
        let first = lately.begin_period(0, 40);
        assert_eq!(lately.peak(), 100);
        assert!(lately.saw(50));
        let second = lately.begin_period(first, 10);
        assert_eq!(lately.peak(), 50);
        lately.begin_period(second, 10);
        assert_eq!(lately.peak(), 10);
    }

    #[test]
    fn several_who_look_begin_one_period() {
        let lately = Lately::new();
        let (mut one, mut other) = (0, 0);
        for round in 1..5 {
            one = lately.begin_period(one, 0);
            other = lately.begin_period(other, 0);
            assert_eq!((one, other), (round, round));
        }
    }
}
