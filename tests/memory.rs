//! What connections keep in memory: no more than what they hold, and hardly anything when they are idle.
//!
//! One test in a process of its own: it looks at the blocks of the process's pool.

mod support;

use std::io::Write;
use std::thread;

use duopoll::{Connection, Engine, Limits, Pool};
use pollster::block_on;
use support::settled::Settled;
use support::{Family, Pattern, Peer, Setup, connected, eventually};

const MIB: usize = 1 << 20;

fn message() -> Vec<u8> {
    let mut pattern = Pattern::new(41);
    let mut message = Vec::with_capacity(MIB);
    while message.len() < MIB {
        message.extend_from_slice(pattern.next(MIB - message.len()));
    }
    message
}

fn live_bytes() -> usize {
    Pool::global().stats().live_bytes
}

#[test]
fn memory_follows_what_is_held() {
    for engine in [Engine::Epoll, Engine::Uring] {
        let setup = Setup { engine, family: Family::V4 };
        for part in [
            a_message_in_small_pieces_costs_little_more_than_its_bytes,
            idle_connections_give_back_what_a_burst_took,
            what_waits_after_large_replies_is_given_back,
        ] {
            part(setup);
            // Pollers that still end connections are not waited for.
            eventually("nothing is left behind", || live_bytes() == 0);
        }
    }
}

fn a_message_in_small_pieces_costs_little_more_than_its_bytes(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let before = live_bytes();
    let message = &message();
    let mut most = 0;
    for (index, piece) in message.chunks(1 << 10).enumerate() {
        peer.write_all(piece).expect("sent");
        let received = (index as u64 + 1) << 10;
        eventually("it is received", || pollers.settled().received_bytes == received);
        most = most.max(live_bytes() - before);
    }
    assert_eq!(block_on(connection.next(MIB)).expect("received"), *message);
    most = most.max(live_bytes() - before);
    assert!(most <= 4 * MIB, "{:?}: {most} bytes for a message of {MIB}", setup.engine);
}

fn idle_connections_give_back_what_a_burst_took(setup: Setup) {
    const CONNECTIONS: usize = 50;
    let server = setup.serve_echo();
    let before = live_bytes();
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| Peer::connect(server.local_addr())).collect();
    let message = &message();
    for peer in &mut peers {
        let mut sender = peer.try_clone();
        thread::scope(|scope| {
            scope.spawn(move || sender.write_all(message).expect("sent"));
            let mut reply = vec![0; MIB];
            std::io::Read::read_exact(peer, &mut reply).expect("a reply");
        });
    }
    let kept = live_bytes() - before;
    // What the poller has at hand. On a ring also what the kernel may write to: two of the largest blocks for each.
    let each = if setup.engine == Engine::Epoll { 0 } else { MIB };
    assert!(kept <= 8 * MIB + CONNECTIONS * each, "{:?}: {kept} bytes are kept", setup.engine);
    drop(peers);
    drop(server);
    eventually("everything is given back", || live_bytes() <= before);
}

/// By the poller itself, which has nothing else to do.
fn what_waits_after_large_replies_is_given_back(setup: Setup) {
    const CONNECTIONS: usize = 4;
    // More than sockets hold.
    const PIECES: usize = 16;
    let service = setup.builder().on_request(async |connection: &mut Connection| {
        connection.skip(1).await?;
        let message = message();
        for _ in 0..PIECES {
            connection.write(&message)?;
        }
        connection.flush().await
    });
    let server = service.serve(setup.listener()).expect("a server");
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| Peer::connect(server.local_addr())).collect();
    let message = &message();
    let before = live_bytes();
    for round in 0..3 {
        for peer in &mut peers {
            peer.write_all(b"x").expect("sent");
        }
        if round == 0 {
            let most = CONNECTIONS * PIECES / 4 * MIB;
            eventually("they wait together", || live_bytes() - before >= most);
        }
        for peer in &mut peers {
            let mut piece = vec![0; MIB];
            for _ in 0..PIECES {
                std::io::Read::read_exact(peer, &mut piece).expect("a reply");
                assert_eq!(piece, *message);
            }
        }
    }
    // Free small blocks beside others that are in use may be more than the limit.
    eventually("what waits is given back", || Pool::global().stats().pooled_bytes <= 9 * MIB);
}
