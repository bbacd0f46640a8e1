//! A process that was stopped for longer than its timeouts: what came meanwhile is answered.

#[path = "support/example.rs"]
mod example;
mod support;

use std::io::{Read, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use example::example;
use support::process::Process;
use support::{PATIENCE, Peer, scaled};

const CONNECTIONS: usize = 100;
/// In seconds, for the flag.
const IDLE: &str = "1";
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
const STOPPED: Duration = Duration::from_millis(1500);

/// `features`: what may be used of io_uring, if that is said.
fn all_are_answered(engine: &str, features: Option<&str>) {
    let start = Instant::now();
    while !were_answered(engine, features) {
        assert!(start.elapsed() < PATIENCE, "this machine is too slow");
    }
}

/// False if it took too long to stop the process.
fn were_answered(engine: &str, features: Option<&str>) -> bool {
    let mut command = Command::new(example("echo"));
    command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--idle-timeout", IDLE]);
    if let Some(features) = features {
        command.env("DUOPOLL_URING", features);
    }
    let server = Process::start(command);
    let begin = Instant::now();
    let connect = |_| {
        let mut peer = Peer::connect(&server.address);
        peer.write_all(b"before").expect("sent");
        let served = peer.read_exact(&mut [0; 6]).is_ok();
        served.then_some(peer)
    };
    let peers: Option<Vec<_>> = (0..scaled(CONNECTIONS)).map(connect).collect();
    server.stop();
    let stopped = Instant::now();
    if begin.elapsed() >= IDLE_TIMEOUT {
        return false;
    }
    let mut peers = peers.expect("nobody is idle yet");
    let (early, late) = peers.split_at_mut(scaled(CONNECTIONS) / 2);
    let ask = |peer: &mut Peer| peer.write_all(b"meanwhile").expect("sent");
    early.iter_mut().for_each(ask);
    // Longer than they may be idle.
    thread::sleep(STOPPED.saturating_sub(stopped.elapsed()));
    late.iter_mut().for_each(ask);
    server.go_on();
    for (index, peer) in peers.iter_mut().enumerate() {
        let mut reply = [0; 9];
        peer.read_exact(&mut reply).unwrap_or_else(|error| panic!("{index}: {error}"));
        assert_eq!(&reply, b"meanwhile");
    }
    server.end();
    true
}

#[test]
fn epoll_answers_what_came_while_it_was_stopped() {
    all_are_answered("epoll", None);
}

#[test]
fn uring_answers_what_came_while_it_was_stopped() {
    all_are_answered("uring", None);
}

#[test]
fn the_base_tier_answers_what_came_while_it_was_stopped() {
    all_are_answered("uring", Some("base"));
}
