//! How much one address may ask: a token bucket each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that are known at once. Whoever comes when none can be forgotten is turned away.
const SOURCES_MAX: usize = 1 << 16;
/// How long an empty bucket takes to be full.
const FILLS_IN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Sources {
    /// Queries per second, and at once.
    max: Option<u32>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    buckets: HashMap<IpAddr, Bucket>,
    /// When those that were full have been forgotten last.
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, max: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * max).min(max);
        self.at = now;
    }
}

impl Sources {
    pub(crate) fn new(max: Option<u32>) -> Sources {
        Sources { max, known: Mutex::default() }
    }

    /// Whether it may ask once more.
    pub(crate) fn admit(&self, source: IpAddr, now: Instant) -> bool {
        let Some(max) = self.max.map(f64::from) else { return true };
        let source = source.to_canonical();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { buckets, swept } = &mut *known;
        if buckets.len() >= SOURCES_MAX && !buckets.contains_key(&source) {
            // None can be full again sooner.
            if swept.is_none_or(|swept| now.saturating_duration_since(swept) >= FILLS_IN) {
                *swept = Some(now);
                // A full bucket is as good as none.
                buckets.retain(|_, bucket| {
                    bucket.fill(max, now);
                    bucket.tokens < max
                });
            }
            if buckets.len() >= SOURCES_MAX {
                return false;
            }
        }
        let bucket = buckets.entry(source).or_insert(Bucket { tokens: max, at: now });
        bucket.fill(max, now);
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_bucket() {
        let sources = Sources::new(Some(2));
        let now = Instant::now();
        let ip = |text: &str| text.parse().expect("an address");
        assert!(sources.admit(ip("192.0.2.1"), now) && sources.admit(ip("::ffff:192.0.2.1"), now));
        assert!(!sources.admit(ip("192.0.2.1"), now));
        assert!(sources.admit(ip("192.0.2.2"), now));
        let later = now + Duration::from_millis(500);
        assert!(sources.admit(ip("192.0.2.1"), later) && !sources.admit(ip("192.0.2.1"), later));
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let sources = Sources::new(Some(1));
        let now = Instant::now();
        let ip = |number: usize| IpAddr::from((number as u32).to_be_bytes());
        assert!((0..SOURCES_MAX).all(|number| sources.admit(ip(number), now)));
        assert!(!sources.admit(ip(SOURCES_MAX), now));
        assert!(sources.admit(ip(SOURCES_MAX), now + FILLS_IN));
        assert_eq!(sources.known.lock().expect("no panic").buckets.len(), 1);
    }
}
