//! Shutdowns of servers that are not at rest: clients come, and handlers dial.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Address, Connection, Dialer, Pollers};
use socket2::{Domain, SockRef, Socket, Type};
use support::peers::{sock_addr, try_connect};
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    a_shutdown_while_clients_come_leaves_none_waiting,
    a_shutdown_ends_a_dial_that_is_under_way,
);

fn a_shutdown_while_clients_come_leaves_none_waiting(setup: Setup) {
    for round in 0..5 {
        let server = setup.serve_echo();
        let address = server.local_addr().clone();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Ok(mut peer) = try_connect(&address) {
                        // Whoever was not accepted is told by a reset, or by the end.
                        let mut reply = [0];
                        let sent = peer.write_all(b"x").and_then(|()| peer.read(&mut reply));
                        match sent {
                            Ok(1) => assert_eq!(&reply, b"x"),
                            Ok(_) => {}
                            Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "waits"),
                        }
                    }
                });
            }
            eventually("many have come", || server.settled().requests >= 20 * (round + 1));
            assert_eq!(server.shutdown(PATIENCE), 0);
            let stats = server.settled();
            assert_eq!((stats.connections, stats.accepts), (stats.closed, stats.connections));
        });
    }
}

fn a_shutdown_ends_a_dial_that_is_under_way(setup: Setup) {
    // A listener whose backlog is full answers nobody, or makes a Unix socket wait.
    let full = setup.listener();
    let address = full.local_addr().expect("bound");
    SockRef::from(&full).listen(0).expect("listening");
    let _waiting = fill(&address);

    let dialers = setup.pollers(1);
    let dialer = Dialer::new().pollers(dialers.clone());
    let (said, dials) = mpsc::channel();
    let said = Mutex::new(said);
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.skip(1).await?;
        let _ = said.lock().expect("no panic").send(());
        let dialed = dialer.dial_addr(address.clone()).await;
        panic!("nobody accepts: {dialed:?}");
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    dials.recv_timeout(PATIENCE).expect("a dial");
    if setup.family != Family::Unix {
        eventually("the dial is under way", || dialers.settled().connections == 1);
    }
    let start = Instant::now();
    assert_eq!(server.shutdown(Duration::ZERO), 1, "the one that dials");
    assert!(start.elapsed() < PATIENCE / 6, "held up for {:?}", start.elapsed());
    drop(server);
    eventually("the dial is over", || dialers.settled().closed == dialers.settled().connections);
    let end = peer.read_rest();
    assert!(end.is_err() || end.is_ok_and(|rest| rest.is_empty()));
}

/// Connects until a connect has to wait.
fn fill(address: &Address) -> Vec<Socket> {
    let remote = sock_addr(address);
    let domain = Domain::from(i32::from(remote.family()));
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
        let result = socket.connect_timeout(&remote, Duration::from_millis(100));
        sockets.push(socket);
        if result.is_err() {
            return sockets;
        }
    }
    panic!("the backlog is never full");
}
