//! Out of descriptors: accepting waits and goes on, every time, without spinning.
//!
//! The server is an example in a process of its own, with a small limit.

#[path = "support/example.rs"]
mod example;
mod support;

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use example::example;
use support::Peer;
use support::process::Process;

/// Descriptors that the server may have.
const DESCRIPTORS: u64 = 32;
/// More than that leaves for connections, and no more than wait in the backlog.
const CONNECTIONS: usize = 60;

/// A server with few descriptors.
fn start(engine: &str) -> Process {
    let mut command = Command::new(example("echo"));
    command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--stats"]);
    let limit = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
    // SAFETY: setrlimit(2) is allowed between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    Process::start(command)
}

/// More connections than fit; all are served, as others go.
fn crowd(server: &Process) {
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| Peer::connect(&server.address)).collect();
    for peer in &mut peers {
        peer.write_all(b"x").expect("sent");
    }
    for mut peer in peers {
        peer.read_exact(&mut [0]).expect("served, sooner or later");
    }
}

fn recovers_every_time(engine: &str) {
    let server = start(engine);
    for _ in 0..3 {
        crowd(&server);
    }
    let stats = server.end();
    assert!(!stats.contains("\"accept_backoffs\": 0"), "the limit was never reached: {stats}");
    assert!(stats.contains(&format!("\"accepts\": {}", 3 * CONNECTIONS)), "{stats}");
}

fn ends_while_it_waits(engine: &str) {
    let server = start(engine);
    let peers: Vec<_> = (0..CONNECTIONS).map(|_| Peer::connect(&server.address)).collect();
    // Half a second in which nothing can be accepted costs no more than a few looks.
    let before = server.processor_time();
    std::thread::sleep(Duration::from_millis(500));
    let spent = server.processor_time() - before;
    assert!(spent <= Duration::from_millis(100), "{spent:?} of processor time to do nothing");
    drop(peers);
    server.end();
}

#[test]
fn epoll_recovers_every_time() {
    recovers_every_time("epoll");
}

#[test]
fn uring_recovers_every_time() {
    recovers_every_time("uring");
}

#[test]
fn epoll_ends_while_it_waits() {
    ends_while_it_waits("epoll");
}

#[test]
fn uring_ends_while_it_waits() {
    ends_while_it_waits("uring");
}
