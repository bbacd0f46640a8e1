//! Slots, descriptors and timers are used again and again: nothing of one connection reaches another.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Dialer, Limits};
use pollster::block_on;
use support::settled::Settled;
use support::{Peer, Random, Setup, connected, eventually, poll_once};

on_every_setup!(
    no_byte_reaches_another_connection,
    no_dialed_connection_gets_anothers_bytes,
    no_timer_outlives_its_connection,
    no_timer_outlives_its_wait,
);

const BYTES: usize = 3000;

/// What one connection sends: nothing that any other sends.
fn message(server: u64, connection: u64) -> Vec<u8> {
    let mut random = Random::new(server << 32 | connection);
    (0..BYTES.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(BYTES).collect()
}

/// Short connections in several threads, to two servers with the same pollers. A third of them end by reset with half a
/// message on its way and their reply unread.
fn no_byte_reaches_another_connection(setup: Setup) {
    const CLIENTS: u64 = 8;
    const CONNECTIONS: u64 = 60;
    let pollers = setup.pollers(2);
    let serve = || {
        let service = duopoll::EventLoop::builder().on(pollers.clone());
        service.on_request(support::echo).serve(setup.listener()).expect("a server")
    };
    let servers = [serve(), serve()];
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let servers = &servers;
            scope.spawn(move || {
                for connection in 0..CONNECTIONS {
                    let server = (client + connection) % 2;
                    let message = message(server, client * CONNECTIONS + connection);
                    let mut peer = Peer::connect(servers[server as usize].local_addr());
                    peer.write_all(&message).expect("sent");
                    if connection % 3 == 0 {
                        let _ = peer.write(&message);
                        peer.reset();
                        continue;
                    }
                    let mut reply = vec![0; BYTES];
                    peer.read_exact(&mut reply).expect("a reply");
                    assert_eq!(reply, message);
                    if connection % 3 == 1 {
                        peer.shutdown(std::net::Shutdown::Write);
                        assert_eq!(peer.read_rest().expect("the end"), b"");
                    }
                }
            });
        }
    });
    eventually("all are over", || {
        let stats = pollers.settled();
        stats.closed == stats.connections
    });
}

fn no_dialed_connection_gets_anothers_bytes(setup: Setup) {
    const CLIENTS: u64 = 8;
    const DIALS: u64 = 40;
    // Each server says who it is, and closes.
    let serve = |number: u8| {
        setup.serve(async move |connection: &mut Connection| {
            let request = connection.next(BYTES).await?;
            connection.write(&[number])?;
            connection.push(request);
            connection.flush().await?;
            Err(ErrorKind::Other.into())
        })
    };
    let servers = [serve(0), serve(1)];
    let pollers = setup.pollers(2);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (servers, dialer) = (&servers, Dialer::new().pollers(pollers.clone()));
            scope.spawn(move || {
                for dial in 0..DIALS {
                    let server = (client + dial) % 2;
                    let message = message(server, client * DIALS + dial);
                    let address = servers[server as usize].local_addr().clone();
                    block_on(async {
                        let mut connection = dialer.dial_addr(address).await.expect("dialed");
                        connection.write(&message).expect("staged");
                        if dial % 4 == 0 {
                            // Dropped with a read under way.
                            connection.flush().await.expect("flushed");
                            let _ = poll_once(pin!(connection.next(BYTES)));
                            return;
                        }
                        connection.flush().await.expect("flushed");
                        assert_eq!(connection.read_u8().await.expect("a reply"), server as u8);
                        assert_eq!(connection.next(BYTES).await.expect("a reply"), *message);
                        assert!(!connection.more().await.expect("the end"));
                    });
                }
            });
        }
    });
    eventually("all are over", || {
        let stats = pollers.settled();
        stats.closed == stats.connections
    });
}

fn no_timer_outlives_its_connection(setup: Setup) {
    const SHORT: Duration = Duration::from_millis(50);
    let pollers = setup.pollers(1);
    let listener = setup.listener().pollers(pollers.clone());
    let address = listener.local_addr().expect("bound");
    let connect = || {
        let peer = Peer::connect(&address);
        (peer, block_on(listener.accept()).expect("accepted"))
    };
    let mut old = Vec::new();
    for _ in 0..4 {
        let (peer, mut connection) = connect();
        let start = Instant::now();
        connection.set_read_timeout(Some(SHORT));
        connection.set_idle_timeout(Some(SHORT));
        connection.set_read_deadline(Some(start + SHORT));
        let (reader, writer) = connection.split();
        assert!(poll_once(pin!(reader.fill(1))).is_pending());
        writer.control().set_write_deadline(Some(start + SHORT));
        old.push((peer, connection));
    }
    old.clear();
    eventually("their slots are free", || pollers.settled().closed == 4);
    let mut new: Vec<_> = (0..4).map(|_| connect()).collect();
    let mut reads: Vec<_> =
        new.iter_mut().map(|(_, connection)| Box::pin(connection.next(1))).collect();
    // Not to wait for something: the pause is the test.
    let over = Instant::now() + 3 * SHORT;
    while Instant::now() < over {
        for read in &mut reads {
            assert!(poll_once(read.as_mut()).is_pending(), "ended by another's timer");
        }
        thread::sleep(SHORT / 10);
    }
    drop(reads);
    for (peer, connection) in &mut new {
        peer.write_all(b"x").expect("sent");
        assert_eq!(block_on(connection.next(1)).expect("received"), b"x");
    }
    assert_eq!(pollers.settled().idle_timeouts, 0);
}

fn no_timer_outlives_its_wait(setup: Setup) {
    const SHORT: Duration = Duration::from_millis(50);
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    connection.set_read_timeout(Some(SHORT));
    connection.set_write_timeout(Some(SHORT));
    connection.push(vec![7; 16 << 20]);
    assert!(poll_once(pin!(connection.drain())).is_pending());
    assert!(poll_once(pin!(connection.next(2))).is_pending());
    // Both futures are dropped. Not to wait for something: the pause is the test.
    thread::sleep(2 * SHORT);
    {
        let (reader, writer) = connection.split();
        let (mut next, mut drain) = (pin!(reader.next(2)), pin!(writer.drain()));
        assert!(poll_once(next.as_mut()).is_pending(), "ended by the timer of another wait");
        assert!(poll_once(drain.as_mut()).is_pending(), "ended by the timer of another wait");
    }
    connection.set_read_timeout(None);
    connection.set_write_timeout(None);
    thread::scope(|scope| {
        scope.spawn(|| {
            peer.write_all(b"xy").expect("sent");
            peer.read_exact(&mut vec![0; 16 << 20]).expect("received");
        });
        assert_eq!(block_on(connection.next(2)).expect("received"), b"xy");
        block_on(connection.drain()).expect("sent");
    });
}
