//! Every byte comes back: many connections, pieces of all sizes, peers that read slowly.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use duopoll::Engine;
use support::settled::Settled;
use support::{Pattern, Peer, Random, Setup, scaled};

on_every_setup!(
    every_byte_comes_back,
    data_before_fin_is_answered,
    a_peer_that_never_reads_costs_bounded_memory,
);

const CONNECTIONS: u64 = 100;
/// In all: 200 MiB.
const BYTES_PER_CONNECTION: usize = 2 << 20;
const PIECE_BYTES_MAX: usize = 1 << 20;

fn every_byte_comes_back(setup: Setup) {
    let server = setup.builder().pollers(2).on_request(support::echo);
    let server = server.serve(setup.listener()).expect("a server");
    thread::scope(|scope| {
        for seed in 0..CONNECTIONS {
            let address = server.local_addr();
            scope.spawn(move || {
                let peer = Peer::connect(address);
                let mut sender = peer.try_clone();
                thread::scope(|scope| {
                    scope.spawn(move || send(&mut sender, seed));
                    receive(peer, seed);
                });
            });
        }
    });
    assert_eq!(server.shutdown(Duration::from_secs(10)), 0, "nobody had to be forced");
    let stats = server.settled();
    assert_eq!(stats.received_bytes, CONNECTIONS * scaled(BYTES_PER_CONNECTION) as u64);
    assert_eq!(stats.sent_bytes, stats.received_bytes);
}

fn send(peer: &mut Peer, seed: u64) {
    let mut random = Random::new(seed);
    let mut pattern = Pattern::new(seed);
    let mut left = scaled(BYTES_PER_CONNECTION);
    while left > 0 {
        let piece = pattern.next(random.length(PIECE_BYTES_MAX).min(left));
        peer.write_all(piece).expect("sent");
        left -= piece.len();
    }
    peer.shutdown(Shutdown::Write);
}

/// Every other peer reads in small bits, and stops now and then.
fn receive(mut peer: Peer, seed: u64) {
    let slow = seed % 2 == 1;
    let mut random = Random::new(!seed);
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 64 << 10];
    let mut received = 0;
    loop {
        let room = if slow { random.length(buffer.len()) } else { buffer.len() };
        let n = peer.read(&mut buffer[..room]).expect("received");
        if n == 0 {
            break;
        }
        assert!(pattern.matches(&buffer[..n]), "bytes {received}.. are not those that were sent");
        received += n;
        if slow && random.next() % 64 == 0 {
            // Not to wait for something: the pause is the test.
            thread::sleep(Duration::from_millis(random.between(1, 5)));
        }
    }
    assert_eq!(received, scaled(BYTES_PER_CONNECTION));
}

fn data_before_fin_is_answered(setup: Setup) {
    let server = setup.serve_echo();
    let mut peer = Peer::connect(server.local_addr());
    let message = Pattern::new(1).next(300_000).to_vec();
    let mut sender = peer.try_clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&message).expect("sent");
            sender.shutdown(Shutdown::Write);
        });
        assert_eq!(peer.read_rest().expect("the end"), message);
    });
}

fn a_peer_that_never_reads_costs_bounded_memory(setup: Setup) {
    let server = setup.serve_echo();
    let mut peer = Peer::connect(server.local_addr());
    peer.set_timeout(Duration::from_millis(200));
    let piece = Pattern::new(2).next(1 << 20);
    let mut sent = 0;
    // Until the kernel's buffers and the server's watermarks are full, and nothing moves any more.
    while let Ok(n) = peer.write(piece) {
        sent += n;
        assert!(sent < 256 << 20, "the server takes everything, and is not told to stop");
    }
    let held = server.settled().received_bytes - server.settled().sent_bytes;
    // Twice the watermark and what comes beyond it: what waits to be sent, and what was received behind that.
    let beyond = if setup.engine == Engine::Epoll { 3 << 20 } else { 5 << 20 };
    let most = 2 * ((1 << 20) + beyond);
    assert!(held <= most, "the server holds {held} bytes of a peer that does not read");
}
