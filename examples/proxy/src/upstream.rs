//! Where connections go: which upstreams there are, how they do, and who is next.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use duopoll::{Address, Connection, Dialer};

use crate::config::{self, Balance, Ejection, Version};

/// How much longer than the first time one is left alone, at most.
const EJECTION_DOUBLED_MAX: u32 = 4;

#[derive(Debug)]
pub(crate) struct Upstreams {
    all: Vec<Upstream>,
    balance: Balance,
    ejection: Ejection,
    /// Counts the connections.
    turn: AtomicUsize,
    /// What times are counted from.
    start: Instant,
}

// Relaxed everywhere: each stands for itself, and a choice may be made by what was true a moment ago.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    target: Target,
    pub(crate) send_proxy: Option<Version>,
    /// What active checks say.
    up: AtomicBool,
    /// Until when it is left alone, in milliseconds since the start.
    ejected_until: AtomicU64,
    /// Clients' connections in a row that it has failed.
    failures_in_a_row: AtomicU32,
    ejections_in_a_row: AtomicU32,
    pub(crate) active: AtomicUsize,
    pub(crate) connections: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) ejections: AtomicU64,
}

#[derive(Debug)]
enum Target {
    Address(Address),
    /// To be resolved.
    Name(String),
}

/// A client's connection to an upstream, for as long as it is open.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a Upstream);

impl Upstreams {
    pub(crate) fn new(
        upstreams: &[config::Upstream],
        balance: Balance,
        ejection: Ejection,
    ) -> Upstreams {
        let all = upstreams.iter().map(Upstream::new).collect();
        Upstreams { all, balance, ejection, turn: AtomicUsize::new(0), start: Instant::now() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Upstream> {
        self.all.iter()
    }

    /// Who gets the next connection: of those that are up and not tried yet, one that is not left alone, if there is one.
    pub(crate) fn choose(&self, tried: &[&Upstream]) -> Option<&Upstream> {
        // Another try is at random, so that not always the same one gets what its neighbour does not take.
        let turn = match tried {
            [] => self.turn.fetch_add(1, Ordering::Relaxed),
            _ => random(),
        };
        let now = self.millis();
        self.choose_of(turn, |upstream| {
            upstream.is_up() && !upstream.is_ejected(now) && !contains(tried, upstream)
        })
        .or_else(|| self.choose_of(turn, |upstream| upstream.is_up() && !contains(tried, upstream)))
    }

    fn choose_of(&self, turn: usize, eligible: impl Fn(&Upstream) -> bool) -> Option<&Upstream> {
        let eligible = || self.all.iter().filter(|upstream| eligible(upstream));
        let count = eligible().count();
        let from = match self.balance {
            _ if count == 0 => return None,
            Balance::RoundRobin | Balance::Least => turn % count,
            Balance::Random => random() % count,
        };
        let mut turned = eligible().skip(from).chain(eligible().take(from));
        match self.balance {
            Balance::RoundRobin | Balance::Random => turned.next(),
            // The first of those that have as few.
            Balance::Least => turned.min_by_key(|upstream| upstream.active.load(Ordering::Relaxed)),
        }
    }

    /// A client's connection has gone well.
    pub(crate) fn succeeded(&self, upstream: &Upstream) {
        if upstream.failures_in_a_row.load(Ordering::Relaxed) > 0 {
            upstream.failures_in_a_row.store(0, Ordering::Relaxed);
            upstream.ejections_in_a_row.store(0, Ordering::Relaxed);
            upstream.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// A client's connection could not be made, or was ended before anything came back.
    pub(crate) fn failed(&self, upstream: &Upstream) {
        upstream.failures.fetch_add(1, Ordering::Relaxed);
        let failures = upstream.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        // Those that were under way when it was ejected say nothing new.
        if self.ejection.failures == 0
            || failures < self.ejection.failures
            || self.is_ejected(upstream)
        {
            return;
        }
        let times = upstream.ejections_in_a_row.fetch_add(1, Ordering::Relaxed);
        let time = self.ejection.time.0.saturating_mul(1 << times.min(EJECTION_DOUBLED_MAX));
        let until = self.millis().saturating_add(saturating(time.as_millis()));
        upstream.ejected_until.store(until, Ordering::Relaxed);
        upstream.ejections.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(upstream = %upstream.name, seconds = time.as_secs_f64(), failures, "ejected");
    }

    pub(crate) fn is_ejected(&self, upstream: &Upstream) -> bool {
        upstream.is_ejected(self.millis())
    }

    fn millis(&self) -> u64 {
        saturating(self.start.elapsed().as_millis())
    }
}

impl Upstream {
    fn new(config: &config::Upstream) -> Upstream {
        let name = config.address.clone();
        // A name is resolved each time.
        let is_address = name.parse::<SocketAddr>().is_ok() || name.starts_with("unix:");
        let target = match name.parse() {
            Ok(address) if is_address => Target::Address(address),
            _ => Target::Name(name.clone()),
        };
        Upstream {
            name,
            target,
            send_proxy: config.send_proxy,
            up: AtomicBool::new(true),
            ejected_until: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            ejections_in_a_row: AtomicU32::new(0),
            active: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
        }
    }

    pub(crate) async fn dial(&self, dialer: &Dialer) -> io::Result<Connection> {
        match &self.target {
            Target::Address(address) => dialer.dial_addr(address.clone()).await,
            Target::Name(name) => dialer.dial(name).await,
        }
    }

    /// Counts a client's connection, until the place is dropped.
    pub(crate) fn enter(&self) -> Place<'_> {
        self.active.fetch_add(1, Ordering::Relaxed);
        Place(self)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(crate) fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    fn is_ejected(&self, now: u64) -> bool {
        now < self.ejected_until.load(Ordering::Relaxed)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

fn contains(tried: &[&Upstream], upstream: &Upstream) -> bool {
    tried.iter().any(|tried| std::ptr::eq(*tried, upstream))
}

/// Whether it is this process that has run out of something, and no fault of whoever was to be connected to.
pub(crate) fn is_own_shortage(error: &io::Error) -> bool {
    let source = error.get_ref().and_then(|inner| inner.source()?.downcast_ref::<io::Error>());
    let errno = error.raw_os_error().or_else(|| source?.raw_os_error());
    // What the memory budget refuses has no number.
    errno.map_or(error.kind() == io::ErrorKind::OutOfMemory, |errno| OWN.contains(&errno))
}

/// EMFILE, ENFILE, ENOMEM, ENOBUFS, EADDRNOTAVAIL.
const OWN: [i32; 5] = [24, 23, 12, 105, 99];

/// As good as std seeds its tables.
fn random() -> usize {
    RandomState::new().build_hasher().finish() as usize
}

fn saturating(millis: u128) -> u64 {
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// What a check and a client's connection may take.
pub(crate) fn dialer(timeout: Duration) -> Dialer {
    Dialer::new().timeout(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Seconds;

    fn upstreams(count: usize, balance: Balance, failures: u32) -> Upstreams {
        let upstream =
            |n| config::Upstream { address: format!("127.0.0.1:{}", n + 1), send_proxy: None };
        let all: Vec<_> = (0..count).map(upstream).collect();
        let ejection = Ejection { failures, time: Seconds(Duration::from_secs(3600)) };
        Upstreams::new(&all, balance, ejection)
    }

    fn index(upstreams: &Upstreams, chosen: &Upstream) -> usize {
        upstreams.iter().position(|upstream| std::ptr::eq(upstream, chosen)).expect("one of them")
    }

    #[test]
    fn everybody_has_a_turn() {
        let upstreams = upstreams(3, Balance::RoundRobin, 0);
        let mut seen = [0; 3];
        for _ in 0..30 {
            seen[index(&upstreams, upstreams.choose(&[]).expect("one"))] += 1;
        }
        assert_eq!(seen, [10; 3]);
    }

    #[test]
    fn chance_forgets_nobody() {
        let upstreams = upstreams(3, Balance::Random, 0);
        let mut seen = [0; 3];
        for _ in 0..3000 {
            seen[index(&upstreams, upstreams.choose(&[]).expect("one"))] += 1;
        }
        assert!(seen.iter().all(|seen| *seen > 500), "{seen:?}");
    }

    #[test]
    fn who_has_fewest_is_next() {
        let upstreams = upstreams(3, Balance::Least, 0);
        let mut places = Vec::new();
        for _ in 0..9 {
            places.push(upstreams.choose(&[]).expect("one").enter());
        }
        let active = || upstreams.iter().map(|upstream| upstream.active.load(Ordering::Relaxed));
        assert_eq!(active().collect::<Vec<_>>(), [3; 3]);
        places.truncate(8);
        let fewest = active().position(|active| active == 2).expect("one has fewer");
        assert_eq!(index(&upstreams, upstreams.choose(&[]).expect("one")), fewest);
        drop(places);
        assert_eq!(active().sum::<usize>(), 0);
    }

    #[test]
    fn who_is_down_or_was_tried_is_not_chosen() {
        for balance in [Balance::RoundRobin, Balance::Random, Balance::Least] {
            let upstreams = upstreams(3, balance, 0);
            let all: Vec<_> = upstreams.iter().collect();
            all[0].set_up(false);
            for _ in 0..20 {
                let chosen = upstreams.choose(&[all[1]]).expect("one");
                assert_eq!(index(&upstreams, chosen), 2);
            }
            assert!(upstreams.choose(&[all[1], all[2]]).is_none());
        }
    }

    #[test]
    fn who_fails_is_left_alone_unless_there_is_nobody_else() {
        let upstreams = upstreams(2, Balance::RoundRobin, 2);
        let all: Vec<_> = upstreams.iter().collect();
        upstreams.failed(all[0]);
        upstreams.succeeded(all[0]);
        upstreams.failed(all[0]);
        assert!(!upstreams.is_ejected(all[0]), "not in a row");
        upstreams.failed(all[0]);
        assert!(upstreams.is_ejected(all[0]));
        for _ in 0..10 {
            assert_eq!(index(&upstreams, upstreams.choose(&[]).expect("one")), 1);
        }
        assert_eq!(index(&upstreams, upstreams.choose(&[all[1]]).expect("one")), 0);
        assert_eq!(all[0].ejections.load(Ordering::Relaxed), 1);
    }
}
