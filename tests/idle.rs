//! Connections that are idle cost little memory, and no processor time.
//!
//! The server is an example in a process of its own.

#[path = "support/example.rs"]
mod example;
mod support;

use std::process::Command;
use std::time::Duration;

use example::example;
use support::Peer;
use support::process::Process;

/// Connections that are looked at: those beyond the first few, for which a poller has memory anyway.
const FIRST: usize = 1_000;
const CONNECTIONS: usize = 8_000;
/// User memory for each of them, with all features: 1,010 to 1,050 when this was written.
const BYTES_MAX: usize = 1088;

fn connect(server: &Process, count: usize) -> Vec<Peer> {
    let mut peers: Vec<_> = (0..count).map(|_| Peer::connect(&server.address)).collect();
    for peer in &mut peers {
        assert_eq!(peer.round_trip(&[b'x'; 64]), [b'x'; 64]);
    }
    peers
}

/// What else grows meanwhile, such as the memory that all connections of a poller share, does so once.
fn idle_connections_cost_little(engine: &str) {
    let mut costs = Vec::new();
    while !costs.iter().any(|each| *each <= BYTES_MAX) {
        assert!(costs.len() < 3, "{costs:?} bytes for each idle connection, time after time");
        costs.push(cost_of_idle_connections(engine));
    }
}

/// Bytes for each of them. All of them have talked.
fn cost_of_idle_connections(engine: &str) -> usize {
    let mut command = Command::new(example("echo"));
    command.args(["--listen", "127.0.0.1:0", "--engine", engine]);
    let server = Process::start(command);
    let first = connect(&server, FIRST);
    let before = server.resident_bytes();
    let peers = connect(&server, CONNECTIONS);
    let each = (server.resident_bytes() - before) / CONNECTIONS;
    let before = server.processor_time();
    std::thread::sleep(Duration::from_millis(500));
    let spent = server.processor_time() - before;
    assert!(spent <= Duration::from_millis(10), "{spent:?} of processor time to do nothing");
    drop((first, peers));
    server.end();
    each
}

#[test]
fn epoll_idles_cheaply() {
    idle_connections_cost_little("epoll");
}

#[test]
fn uring_idles_cheaply() {
    idle_connections_cost_little("uring");
}
