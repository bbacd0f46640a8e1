//! The connection layer over an engine that is a simulation: virtual time, peers and faults from a seed, in any order
//! that the seam between the two allows.
//!
//! For every seed: no byte is lost, repeated or reordered in either direction; what came before the end is read
//! before the end, and what was flushed is sent before the FIN; no task sleeps when what it waits for is there, or
//! its time is over; no wait ends too early; memory that is lent is nobody else's; and nothing is left in the end.
//!
//! The seeds are always the same, and in CI, or with `DUOPOLL_FRESH=1`, some that nobody has run before, of which the first
//! is printed.
//!
//! `DUOPOLL_SEED` runs one seed, and tells what happens in it. `DUOPOLL_SEEDS` says how many are run otherwise,
//! `DUOPOLL_FIRST_SEED` from which one on, and `DUOPOLL_FAILURES` after how many failures to give up.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use world::World;

/// Seeds of every run.
const SEEDS: u64 = 20_000;
/// Seeds that nobody has run before, where they are asked for.
const FRESH_SEEDS: u64 = 5_000;

/// Whether to tell what happens.
static TELLS: AtomicBool = AtomicBool::new(false);

/// Tells what happens, if a single seed is replayed.
macro_rules! note {
    ($($what:tt)*) => {
        if $crate::tells() {
            println!($($what)*);
        }
    };
}

/// What the seeds of every run have to reach.
const RARE_PATHS: [&str; 11] = [
    "a donation while memory is lent",
    "a handler that takes time",
    "a task that is aborted",
    "a turn that comes late",
    "asked for what was not harvested",
    "closed before it was connected",
    "cut off with a reset",
    "ended as idle",
    "flushed, and unsent when the poller ends",
    "paused",
    "several who send",
];

/// Rare paths that a run has reached, and how often.
static MARKS: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

/// Notes that a rare path was reached.
macro_rules! mark {
    ($what:literal) => {
        $crate::reached($what)
    };
}

fn reached(what: &'static str) {
    let mut marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    *marks.entry(what).or_default() += 1;
}

#[path = "simulation/clock.rs"]
mod clock;
#[path = "simulation/engine.rs"]
mod engine;
#[path = "simulation/link.rs"]
mod link;
#[path = "simulation/rng.rs"]
mod rng;
#[path = "simulation/senders.rs"]
mod senders;
#[path = "simulation/tasks.rs"]
mod tasks;
#[path = "simulation/world.rs"]
mod world;

fn tells() -> bool {
    TELLS.load(Ordering::Relaxed)
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// A seed by the time of day, if fresh ones are asked for.
fn fresh_seed() -> Option<u64> {
    let asked_for = std::env::var_os("CI").is_some() || from_env("DUOPOLL_FRESH") == Some(1);
    let since = SystemTime::UNIX_EPOCH.elapsed().ok().filter(|_| asked_for)?;
    Some(since.as_micros() as u64)
}

#[test]
fn every_seed_keeps_the_invariants() {
    if let Some(seed) = from_env("DUOPOLL_SEED") {
        TELLS.store(true, Ordering::Relaxed);
        return World::new(seed).run();
    }
    let first = from_env("DUOPOLL_FIRST_SEED").unwrap_or(0);
    let patience = from_env("DUOPOLL_FAILURES").unwrap_or(1);
    let fresh = fresh_seed().map_or(0..0, |fresh| {
        println!("fresh seeds from {fresh}");
        fresh..fresh + FRESH_SEEDS
    });
    let seeds = from_env("DUOPOLL_SEEDS").unwrap_or(SEEDS);
    let mut failures = 0;
    for seed in (first..first + seeds).chain(fresh) {
        if panic::catch_unwind(AssertUnwindSafe(|| World::new(seed).run())).is_err() {
            eprintln!("DUOPOLL_SEED={seed} cargo test -p duopoll-core --test simulation");
            failures += 1;
            if failures == patience {
                break;
            }
        }
    }
    assert_eq!(failures, 0, "each line above that begins with DUOPOLL_SEED replays a failure");
    let marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    println!("reached: {marks:?}");
    if first == 0 && seeds >= SEEDS {
        for path in RARE_PATHS {
            assert!(marks.contains_key(path), "no seed has reached: {path}");
        }
    }
}
