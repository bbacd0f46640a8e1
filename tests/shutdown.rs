//! Shutdowns of servers that are not at rest: clients come, and handlers dial.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Address, Connection, Dialer};
use socket2::{Domain, SockRef, Socket, Type};
use support::peers::{sock_addr, try_connect};
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    a_shutdown_while_clients_come_leaves_none_waiting,
    a_shutdown_ends_a_dial_that_is_under_way,
    pollers_that_come_late_take_no_part,
    an_accept_that_was_leaked_holds_nobody_up,
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

/// Connections wait for a place while the server shuts down, and more pollers are started meanwhile.
fn pollers_that_come_late_take_no_part(setup: Setup) {
    for own in [false, true] {
        let pollers = setup.pollers(1);
        let builder = match own {
            true => setup.builder(),
            false => duopoll::EventLoop::builder().on(pollers.clone()),
        };
        let (begun, begins) = mpsc::channel();
        let (gate, opened) = futures_channel::oneshot::channel::<()>();
        let opened = Mutex::new(Some(opened));
        let service = builder.max_connections(1).on_request(async move |connection| {
            connection.next(1).await?;
            let waits = opened.lock().expect("no panic").take();
            begun.send(()).expect("the test waits");
            if let Some(opened) = waits {
                let _ = opened.await;
            }
            connection.write(b"y")
        });
        let server = service.serve(setup.listener()).expect("a server");
        let mut peers: Vec<_> = (0..4).map(|_| Peer::connect(server.local_addr())).collect();
        for peer in &mut peers {
            peer.write_all(b"x").expect("sent");
        }
        begins.recv_timeout(PATIENCE).expect("the first is served");
        eventually("another is accepted", || server.server_stats().waiting_connections > 0);
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
            eventually("it begins", || peers_are_refused(server.local_addr()));
            server.pollers().grow(2).expect("two more");
            gate.send(()).expect("it waits");
            for mut peer in peers {
                assert_eq!(peer.read_rest().expect("a reply, and the end"), b"y");
            }
            assert_eq!(shutdown.join().expect("no panic"), 0);
        });
        assert_eq!(server.open_connections(), 0);
    }
}

/// Whether nobody listens any more.
fn peers_are_refused(address: &Address) -> bool {
    try_connect(address).is_err()
}

fn an_accept_that_was_leaked_holds_nobody_up(setup: Setup) {
    let pollers = setup.pollers(1);
    let listener = setup.listener().pollers(pollers.clone());
    let listener: &'static duopoll::Listener = Box::leak(Box::new(listener));
    let mut accept = Box::pin(listener.accept());
    assert!(support::poll_once(accept.as_mut()).is_pending());
    std::mem::forget(accept);
    // As if it had been moved: nobody uses the leaked one any more.
    // SAFETY: it is read once, and never again through the reference.
    let listener = unsafe { std::ptr::read(listener) };
    let service = duopoll::EventLoop::builder().on(pollers).on_request(support::echo);
    let server = service.serve(listener).expect("a server");
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
    let begun = Instant::now();
    assert_eq!(server.shutdown(PATIENCE), 0);
    assert!(begun.elapsed() < PATIENCE, "it waited for all of its grace");
}
