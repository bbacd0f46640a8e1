//! Connections that come and go leave nothing behind.
//!
//! One test in a process of its own: it counts the descriptors of the process and the blocks of its pool.

mod support;

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use duopoll::{Engine, Pool, Server};
use support::settled::Settled;
use support::{Family, Peer, Random, Setup, eventually, open_descriptors, scaled};

const CLIENTS: u64 = 8;
const CONNECTIONS_PER_CLIENT: usize = 1_250;

#[test]
fn ten_thousand_connections_leave_nothing() {
    for engine in [Engine::Epoll, Engine::Uring] {
        let server = Setup { engine, family: Family::V4 }.serve_echo();
        // Whatever is made at the first use is made now.
        come_and_go(&server, 0, 100);
        settle(&server, 100);
        let (descriptors, blocks) = (open_descriptors(), Pool::global().stats().live_blocks);

        let each = scaled(CONNECTIONS_PER_CLIENT);
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let server = &server;
                scope.spawn(move || {
                    come_and_go(server, client, each);
                });
            }
        });
        settle(&server, 100 + CLIENTS * each as u64);
        assert_eq!(open_descriptors(), descriptors, "{engine:?}: descriptors");
        // The poller keeps some at hand, whatever it was that it last did.
        let kept = 64;
        let live = Pool::global().stats().live_blocks;
        assert!(live <= blocks + kept, "{engine:?}: {live} blocks live, {blocks} before");
        assert_eq!(server.shutdown(Duration::from_secs(5)), 0);
        assert_eq!(Pool::global().stats().live_blocks, 0, "{engine:?}: blocks after the end");
    }
}

/// Half of the connections end by reset: some with a reply unread, some with a request on its way.
fn come_and_go(server: &Server, seed: u64, count: usize) {
    let mut random = Random::new(seed);
    let message = [7; 3000];
    for index in 0..count {
        let mut peer = Peer::connect(server.local_addr());
        let request = &message[..random.length(message.len())];
        peer.write_all(request).expect("sent");
        match index % 4 {
            0 => {
                let mut reply = vec![0; request.len()];
                peer.read_exact(&mut reply).expect("a reply");
            }
            1 => peer.reset(),
            2 => {
                peer.shutdown(std::net::Shutdown::Write);
                assert_eq!(peer.read_rest().expect("the end").len(), request.len());
            }
            _ => {
                let mut first = [0];
                peer.read_exact(&mut first).expect("a reply");
                peer.reset();
            }
        }
    }
}

/// Waits until the server has seen the end of every connection.
fn settle(server: &Server, connections: u64) {
    eventually("every connection is closed", || {
        let stats = server.settled();
        // A connection that is reset before it is accepted is seen by nobody on some kernels.
        stats.accepts + stats.accept_aborts == connections && stats.closed == stats.connections
    });
}
