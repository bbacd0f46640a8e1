//! One script, two engines: what their users see is the same, and what it must be.
//!
//! A script is drawn from a seed. It is run on epoll and on io_uring, over real sockets, and each of its steps must have
//! the outcome that the script foretells.
//!
//! The seeds are always the same, and in CI, or with `DUOPOLL_FRESH=1`, some that nobody has run before, of which the first
//! is printed.
//!
//! `DUOPOLL_SEED` runs one seed and prints both traces. `DUOPOLL_SEEDS` says how many are run otherwise for each
//! family, and `DUOPOLL_FIRST_SEED` from which one on.

#[path = "differential/author.rs"]
mod author;
#[path = "differential/ends.rs"]
mod ends;
#[path = "differential/moves.rs"]
mod moves;
#[path = "differential/script.rs"]
mod script;
#[path = "differential/stage.rs"]
mod stage;
mod support;
#[path = "differential/user.rs"]
mod user;

use std::thread;

use duopoll::Engine;
use script::{Outcome, Script};
use stage::Stage;
use support::{Family, fresh_seed, scaled, wants_fresh_seeds};

/// Scripts for each family in every run.
const SEEDS: usize = 1_000;
/// Scripts that nobody has run before, where they are asked for.
const FRESH_SEEDS: usize = 250;

#[test]
fn the_engines_agree_on_ipv4() {
    agree(Family::V4);
}

#[test]
fn the_engines_agree_on_ipv6() {
    agree(Family::V6);
}

#[test]
fn the_engines_agree_on_unix_sockets() {
    agree(Family::Unix);
}

fn agree(family: Family) {
    let (epoll, uring) = (Stage::new(Engine::Epoll, family), Stage::new(Engine::Uring, family));
    let only = from_env("DUOPOLL_SEED");
    let first = only.or(from_env("DUOPOLL_FIRST_SEED")).unwrap_or(0);
    let count =
        only.map_or_else(|| from_env("DUOPOLL_SEEDS").unwrap_or(scaled(SEEDS) as u64), |_| 1);
    let mut fresh = 0..0;
    if only.is_none() && wants_fresh_seeds() {
        fresh.start = fresh_seed();
        fresh.end = fresh.start + scaled(FRESH_SEEDS) as u64;
        println!("fresh seeds from {}", fresh.start);
    }
    for seed in (first..first + count).chain(fresh) {
        let script = Script::new(seed, family);
        let (epoll, uring) = thread::scope(|scope| {
            let uring = scope.spawn(|| uring.run(&script));
            (epoll.run(&script), uring.join().expect("no panic"))
        });
        let expected: Vec<_> =
            script.steps.iter().filter_map(|planned| planned.expected.clone()).collect();
        let agree = epoll == expected && uring == expected;
        if only.is_some() || !agree {
            tell(&script, &epoll, &uring);
        }
        assert!(agree, "DUOPOLL_SEED={seed} cargo test --test differential, on {family:?}");
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Prints the script, and what has come of it.
fn tell(script: &Script, epoll: &[Outcome], uring: &[Outcome]) {
    let Script { seed, place, tight, alone, steps } = script;
    println!("seed {seed}: {place:?}, tight: {tight}, alone: {alone}");
    let (mut epoll, mut uring) = (epoll.iter(), uring.iter());
    for planned in steps {
        println!("{:?}", planned.step);
        let Some(expected) = &planned.expected else { continue };
        let outcomes = [("epoll", epoll.next()), ("uring", uring.next())];
        for (engine, outcome) in outcomes {
            match outcome {
                Some(outcome) if outcome == expected => println!("    {engine}: {outcome:?}"),
                Some(outcome) => println!("    {engine}: {outcome:?}, and not {expected:?}"),
                None => println!("    {engine}: not reached"),
            }
        }
    }
    println!("then, unexpected: epoll {:?}, uring {:?}", epoll.as_slice(), uring.as_slice());
}
