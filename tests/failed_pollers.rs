//! Pollers whose engine breaks: what becomes of their connections and listeners, and what is left of the others.

mod support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use duopoll::{Connection, Dialer, EventLoop, Listener};
use pollster::block_on;
use support::alone::alone;
use support::broken::Breakable;
use support::settled::Settled;
use support::{Peer, Setup, eventually};

on_every_setup!(
    a_waker_that_panics_ends_nothing,
    the_connections_of_a_poller_that_fails_end_with_an_error,
    a_poller_that_has_failed_gets_nothing_new,
    a_listener_goes_on_when_its_poller_has_failed,
    a_listener_goes_to_the_pollers_that_are_left,
);

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("as the test wants it");
    }
}

/// Waits for bytes with a waker that panics.
fn wait_with_a_waker_that_panics(connection: &mut Connection) {
    let waker = Arc::new(Panics).into();
    let mut cx = Context::from_waker(&waker);
    assert!(connection.reader_mut().poll_fill(&mut cx, 1).is_pending());
}

async fn round_trip(connection: &mut Connection) {
    connection.write(b"x").expect("staged");
    connection.flush().await.expect("flushed");
    assert_eq!(connection.next(1).await.expect("echoes"), b"x");
}

fn a_waker_that_panics_ends_nothing(setup: Setup) {
    let _alone = alone();
    let (server, breakable) = (setup.serve_echo(), Breakable::start(setup, 1));
    let dialer = Dialer::new().pollers(breakable.pollers.clone());
    let dial = || block_on(dialer.dial_addr(server.local_addr().clone())).expect("connected");
    let (mut bad, mut good) = (dial(), dial());
    wait_with_a_waker_that_panics(&mut bad);
    bad.write(b"x").expect("staged");
    block_on(bad.flush()).expect("flushed");
    for _ in 0..3 {
        block_on(round_trip(&mut good));
    }
    // Not even its own connection.
    assert_eq!(block_on(bad.next(1)).expect("echoes"), b"x");
    block_on(round_trip(&mut bad));
    assert_eq!(breakable.pollers.settled().failed_pollers, 0);
}

fn the_connections_of_a_poller_that_fails_end_with_an_error(setup: Setup) {
    let _alone = alone();
    let (server, mut breakable) = (setup.serve_echo(), Breakable::start(setup, 1));
    let dialer = Dialer::new().pollers(breakable.pollers.clone());
    let dial = || block_on(dialer.dial_addr(server.local_addr().clone())).expect("connected");
    let (mut bad, mut good) = (dial(), dial());
    // One whose waker panics when everybody is told of the end.
    wait_with_a_waker_that_panics(&mut bad);
    breakable.break_one();
    let error = block_on(good.next(1)).expect_err("nobody polls");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    // And nothing hangs.
    let stats = breakable.pollers.settled();
    assert_eq!((stats.connections, stats.failed_pollers), (2, 1));
    block_on(dialer.dial_addr(server.local_addr().clone())).expect_err("nobody polls");
}

fn a_poller_that_has_failed_gets_nothing_new(setup: Setup) {
    let _alone = alone();
    let (server, mut breakable) = (setup.serve_echo(), Breakable::start(setup, 2));
    let dialer = Dialer::new().pollers(breakable.pollers.clone());
    breakable.break_one();
    for _ in 0..4 {
        let dialed = block_on(dialer.dial_addr(server.local_addr().clone()));
        block_on(round_trip(&mut dialed.expect("connected")));
    }
}

/// A listener that listens already goes on at another poller, with whoever is in its backlog.
fn a_listener_goes_on_when_its_poller_has_failed(setup: Setup) {
    let _alone = alone();
    let mut breakable = Breakable::start(setup, 2);
    let pollers = breakable.pollers.clone();
    let service = EventLoop::builder().on(pollers.clone()).on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let accepts: Vec<_> = (0..2).map(|_| setup.listener().pollers(pollers.clone())).collect();
    // One of them accepts at each poller.
    for listener in &accepts {
        assert!(support::poll_once(std::pin::pin!(listener.accept())).is_pending());
    }
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
    breakable.break_first();
    // A ring that is gone may still accept for a moment what nobody will ever see.
    for _ in 0..4 {
        eventually("somebody is served", || {
            let mut peer = Peer::connect(server.local_addr());
            peer.set_timeout(Duration::from_millis(100));
            peer.write_all(b"x").is_ok() && peer.read_exact(&mut [0]).is_ok()
        });
        for listener in &accepts {
            let mut accept = std::pin::pin!(listener.accept());
            let mut peers = Vec::new();
            eventually("somebody is accepted", || {
                peers.push(Peer::connect(&listener.local_addr().expect("bound")));
                match support::poll_once(accept.as_mut()) {
                    Poll::Ready(accepted) => accepted.is_ok(),
                    Poll::Pending => false,
                }
            });
        }
    }
    assert_eq!(server.shutdown(support::PATIENCE), 0);
}

fn a_listener_goes_to_the_pollers_that_are_left(setup: Setup) {
    let _alone = alone();
    let mut breakable = Breakable::start(setup, 2);
    let pollers = breakable.pollers.clone();
    let serve = || {
        let service = EventLoop::builder().on(pollers.clone()).on_request(support::echo);
        service.serve(setup.listener())
    };
    let accepts = setup.listener().pollers(pollers.clone());
    let address = accepts.local_addr().expect("bound");
    // One of them accepts for it.
    let mut accept = Box::pin(accepts.accept());
    assert!(support::poll_once(accept.as_mut()).is_pending());
    breakable.break_one();
    let server = serve().expect("by the one that is left");
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"served"), b"served");
    let reuse = Listener::options().reuse_port(true).bind("127.0.0.1:0").expect("bound");
    let shared = server.listen(reuse).expect("by the one that is left");
    assert_eq!(Peer::connect(&shared).round_trip(b"served"), b"served");
    drop(server);
    // Whoever waits for a connection gets it from the poller that is left.
    let _peer = Peer::connect(&address);
    drop(block_on(accept).expect("accepted"));
    breakable.break_one();
    let error = block_on(accepts.accept()).expect_err("no poller is left");
    assert!(error.to_string().contains("ended"), "{error}");
    serve().expect_err("no poller is left");
    eventually("both have failed", || pollers.settled().failed_pollers == 2);
}
