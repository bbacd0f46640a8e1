//! Very many short connections, dialed and served by this library, leave nothing behind.
//!
//! `DUOPOLL_CONNECTIONS` says how many on each engine.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use duopoll::{Connection, Dialer, Engine, Pollers, Pool, Server};
use pollster::block_on;
use support::settled::Settled;
use support::{Family, Pattern, Setup, eventually, open_descriptors, scaled};

/// Connections on each engine, unless the environment says otherwise.
const CONNECTIONS: usize = 20_000;
/// Threads that dial, one connection after another.
const THREADS: u64 = 8;
/// A closed connection keeps its port for a minute, so there must be many addresses to dial from.
const LOCAL_ADDRESSES: u64 = 200;

/// Dials, has one request answered, and closes: by the end of both directions, by that of one, or by a reset.
async fn live(dialer: &Dialer, server: &Server, number: u64) {
    let mut connection = dialer.dial_addr(server.local_addr().clone()).await.expect("dialed");
    let mut pattern = Pattern::new(number);
    let request = pattern.next(1 + number as usize % 3000);
    connection.write(request).expect("staged");
    if number % 3 == 0 {
        connection.flush().await.expect("sent");
        connection.finish();
        check(&mut connection, request).await;
        assert!(!connection.reader_mut().more().await.expect("no error"), "more than was sent");
        return;
    }
    connection.flush().await.expect("sent");
    check(&mut connection, request).await;
    if number % 3 == 1 {
        connection.abort();
    }
}

async fn check(connection: &mut Connection, request: &[u8]) {
    let reply = connection.next(request.len()).await.expect("a reply");
    assert!(reply == *request, "other bytes than were sent");
}

fn many_short_connections_leave_nothing(engine: Engine) {
    let count = std::env::var("DUOPOLL_CONNECTIONS").ok();
    let count: usize = count.map_or(scaled(CONNECTIONS), |count| count.parse().expect("a number"));
    let count = count as u64;
    let (blocks, descriptors) = (Pool::global().stats().live_blocks, open_descriptors());
    let setup = Setup { engine, family: Family::V4 };
    // Timers for all of them.
    let (read, idle) = (Duration::from_secs(50), Duration::from_secs(55));
    let builder = setup.builder().read_timeout(read).idle_timeout(idle);
    let server = builder.on_request(support::echo).serve(setup.listener()).expect("a server");
    let pollers = Pollers::options().engine(engine).count(1).start().expect("a poller");
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (server, pollers, next) = (&server, &pollers, &next);
            scope.spawn(move || {
                for turn in 0.. {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let host = (thread + turn * THREADS) % LOCAL_ADDRESSES;
                    let local = SocketAddr::from((Ipv4Addr::new(127, 0, 1, host as u8), 0));
                    let dialer = Dialer::new().pollers(pollers.clone()).local_addr(local);
                    block_on(live(&dialer.expect("an address"), server, number));
                }
            });
        }
    });
    eventually("every connection is over", || {
        let (served, dialed) = (server.settled(), pollers.settled());
        served.closed == count && dialed.closed == count
    });
    let (served, dialed) = (server.settled(), pollers.settled());
    assert_eq!((served.accepts, served.timers, dialed.timers), (count, 0, 0));
    assert_eq!(served.handler_panics, 0);
    assert_eq!(server.shutdown(Duration::from_secs(10)), 0);
    drop((server, pollers));
    assert_eq!(Pool::global().stats().live_blocks, blocks);
    assert_eq!(open_descriptors(), descriptors);
}

/// One after the other, since descriptors and blocks are those of the process.
#[test]
fn many_short_connections_leave_nothing_on_either_engine() {
    for engine in [Engine::Epoll, Engine::Uring] {
        many_short_connections_leave_nothing(engine);
    }
}
