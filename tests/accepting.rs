//! Accepting connections one by one: what is accepted is lost by nobody's dropping, handing over or ending.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use duopoll::time::sleep;
use duopoll::{Connection, EventLoop, Listener, Pollers};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually, poll_once, scaled};

on_every_setup!(
    an_accept_that_is_dropped_loses_nobody,
    a_select_with_a_tick_serves_everybody,
    accepts_that_are_dropped_leave_nothing,
    what_was_accepted_ahead_is_served,
    nobody_is_lost_while_a_listener_changes_hands,
    a_server_that_was_shut_down_serves_nobody,
    accepting_ahead_is_bounded,
    a_handler_may_accept_on_its_own_pollers,
    an_accept_without_pollers_fails_for_good,
    a_dropped_listener_has_freed_its_address,
    a_listener_that_nobody_accepted_from_yet_can_be_dropped,
);

fn pollers(setup: Setup, count: usize) -> Pollers {
    setup.pollers(count)
}

fn an_accept_that_is_dropped_loses_nobody(setup: Setup) {
    const PEERS: usize = 50;
    let listener = setup.listener().pollers(pollers(setup, 2));
    let address = listener.local_addr().expect("bound");
    for round in 0..PEERS {
        let mut peer = Peer::connect(&address);
        // As often as it takes, at whatever moment.
        let connection = loop {
            if let Poll::Ready(accepted) = poll_once(pin!(listener.accept())) {
                break accepted;
            }
            thread::yield_now();
        };
        let mut connection = connection.expect("accepted");
        peer.write_all(&[round as u8]).expect("sent");
        assert_eq!(block_on(connection.next(1)).expect("received"), [round as u8][..]);
    }
}

/// The first of the two that is ready; the other is dropped.
async fn accept_or_tick(listener: &Listener) -> Option<Connection> {
    let mut accept = pin!(listener.accept());
    let mut tick = pin!(sleep(Duration::from_millis(1)));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(accepted) = accept.as_mut().poll(cx) {
            return Poll::Ready(Some(accepted.expect("accepted")));
        }
        tick.as_mut().poll(cx).map(|()| None)
    })
    .await
}

fn a_select_with_a_tick_serves_everybody(setup: Setup) {
    let clients = scaled(1_000);
    let listener = setup.listener().pollers(pollers(setup, 2));
    let address = listener.local_addr().expect("bound");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..clients / 4 {
                    assert_eq!(Peer::connect(&address).round_trip(b"x"), b"x");
                }
            });
        }
        let mut served = 0;
        while served < clients / 4 * 4 {
            let Some(mut connection) = block_on(accept_or_tick(&listener)) else { continue };
            served += 1;
            scope.spawn(move || {
                block_on(async {
                    while connection.next_request().await? {
                        support::echo(&mut connection).await?;
                    }
                    std::io::Result::Ok(())
                })
            });
        }
    });
}

/// Counts the wakers that there are.
struct Counted(Arc<AtomicUsize>);

impl Wake for Counted {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn accepts_that_are_dropped_leave_nothing(setup: Setup) {
    let listener = setup.listener().pollers(pollers(setup, 1));
    let wakers = Arc::new(AtomicUsize::new(0));
    for _ in 0..scaled(100_000) {
        wakers.fetch_add(1, Ordering::Relaxed);
        let waker = Waker::from(Arc::new(Counted(wakers.clone())));
        let mut accept = pin!(listener.accept());
        assert!(accept.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    assert_eq!(wakers.load(Ordering::Relaxed), 0);
}

fn what_was_accepted_ahead_is_served(setup: Setup) {
    const PEERS: usize = 20;
    let pollers = pollers(setup, 2);
    let listener = setup.listener().pollers(pollers.clone());
    let address = listener.local_addr().expect("bound");
    assert!(poll_once(pin!(listener.accept())).is_pending());
    let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(&address)).collect();
    // What they send meanwhile is not lost either.
    peers.iter_mut().for_each(|peer| peer.write_all(b"ahead").expect("sent"));
    eventually("they are accepted", || pollers.settled().accepts == PEERS as u64);
    let server = setup.builder().on_request(support::echo).serve(listener).expect("a server");
    for peer in &mut peers {
        let mut echo = [0; 5];
        peer.read_exact(&mut echo).expect("served");
        assert_eq!(&echo, b"ahead");
    }
    // Those who come later, too.
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"later"), b"later");
}

fn accepting_ahead_is_bounded(setup: Setup) {
    const PEERS: usize = 300;
    let pollers = pollers(setup, 1);
    let listener = setup.listener().pollers(pollers.clone());
    let address = listener.local_addr().expect("bound");
    assert!(poll_once(pin!(listener.accept())).is_pending());
    let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(&address)).collect();
    eventually("some are accepted", || pollers.settled().accepts >= 128);
    let ahead = pollers.settled().accepts;
    // And what one more turn accepts, and the one with which the engine is told to stop.
    assert!((128..=127 + 64 + 1).contains(&ahead), "{ahead} were accepted");
    let mut connections: Vec<_> =
        (0..PEERS).map(|_| block_on(listener.accept()).expect("accepted")).collect();
    for peer in &mut peers {
        peer.write_all(b"x").expect("sent");
    }
    for connection in &mut connections {
        assert_eq!(block_on(connection.next(1)).expect("received"), b"x"[..]);
    }
}

/// As an FTP server does in passive mode.
fn a_handler_may_accept_on_its_own_pollers(setup: Setup) {
    for count in [1, 2] {
        let pollers = pollers(setup, count);
        let (on, said) = (pollers.clone(), mpsc::channel());
        let addresses = said.0;
        let service = EventLoop::builder().on(pollers.clone()).on_request(
            async move |connection: &mut Connection| {
                let len = connection.input_mut().len();
                connection.skip(len).await?;
                let listener = setup.listener().pollers(on.clone());
                addresses.send(listener.local_addr()?).expect("the test waits");
                let mut passive = listener.accept().await?;
                let adopted = on.adopt(std::os::unix::net::UnixStream::pair()?.0).await?;
                drop(adopted);
                passive.write(b"passive")?;
                passive.drain().await?;
                connection.write(b"done")?;
                connection.flush().await
            },
        );
        let server = service.serve(setup.listener()).expect("a server");
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(b"x").expect("sent");
        let address = said.1.recv_timeout(PATIENCE).expect("it listens");
        let mut passive = Peer::connect(&address);
        assert_eq!(passive.read_rest().expect("the end"), b"passive");
        let mut done = [0; 4];
        peer.read_exact(&mut done).expect("served");
        assert_eq!(&done, b"done");
    }
}

fn an_accept_without_pollers_fails_for_good(setup: Setup) {
    let pollers = pollers(setup, 1);
    let listener = setup.listener().pollers(pollers.clone());
    let waiting = thread::scope(|scope| {
        let waiting = scope.spawn(|| block_on(listener.accept()));
        eventually("it waits", || pollers.settled().waits > 0);
        pollers.stop();
        waiting.join().expect("no panic")
    });
    assert_eq!(waiting.expect_err("nobody accepts").kind(), ErrorKind::NotConnected);
    let error = block_on(listener.accept()).expect_err("nobody accepts");
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
}

fn a_dropped_listener_has_freed_its_address(setup: Setup) {
    let pollers = pollers(setup, 1);
    for _ in 0..20 {
        let listener = setup.listener().pollers(pollers.clone());
        let address = listener.local_addr().expect("bound");
        assert!(poll_once(pin!(listener.accept())).is_pending());
        drop(listener);
        // At once, without SO_REUSEADDR's help in the case of TCP: nobody listens there any more.
        support::peers::try_connect(&address).expect_err("nobody listens");
        let again = Listener::bind(&address).expect("the address is free");
        drop(again);
    }
}

fn a_listener_that_nobody_accepted_from_yet_can_be_dropped(setup: Setup) {
    let pollers = pollers(setup, 1);
    let listener = setup.listener().pollers(pollers.clone());
    // The poller may not have begun to listen yet.
    assert!(poll_once(pin!(listener.accept())).is_pending());
    drop(listener);
    eventually("nothing is left", || pollers.settled().connections == 0);
}

/// Clients come and send while the listener is given to a server, and its own pollers go.
fn nobody_is_lost_while_a_listener_changes_hands(setup: Setup) {
    const PEERS: u8 = 100;
    for round in 0..scaled(16) as u64 {
        let own = pollers(setup, 2);
        let listener = setup.listener().pollers(own.clone());
        let address = listener.local_addr().expect("bound");
        assert!(poll_once(pin!(listener.accept())).is_pending());
        let peers = thread::spawn(move || {
            let sends = |number| {
                let mut peer = Peer::connect(&address);
                peer.write_all(&[number; 5]).expect("sent");
                peer
            };
            (0..PEERS).map(sends).collect::<Vec<_>>()
        });
        // Somewhere in the middle.
        thread::sleep(Duration::from_micros(round * 200));
        let builder = match round % 2 {
            0 => EventLoop::builder().on(own.clone()),
            _ => EventLoop::builder().engine(setup.engine).pollers(2),
        };
        let server = builder.on_request(support::echo).serve(listener).expect("a server");
        drop(own);
        for (number, peer) in peers.join().expect("no panic").iter_mut().enumerate() {
            let mut echo = [0; 5];
            peer.read_exact(&mut echo).expect("served");
            assert_eq!(echo, [number as u8; 5]);
        }
        assert_eq!(server.server_stats().accepts, u64::from(PEERS));
    }
}

/// Whoever was accepted ahead and comes too late is closed.
fn a_server_that_was_shut_down_serves_nobody(setup: Setup) {
    const PEERS: u64 = 20;
    let (own, others) = (pollers(setup, 1), pollers(setup, 1));
    let listener = setup.listener().pollers(own.clone());
    let address = listener.local_addr().expect("bound");
    assert!(poll_once(pin!(listener.accept())).is_pending());
    let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(&address)).collect();
    eventually("they are accepted", || own.settled().accepts == PEERS);
    let server = EventLoop::builder().on(others.clone()).on_request(support::echo);
    let server = server.serve(listener).expect("a server");
    server.shutdown(Duration::ZERO);
    drop(server);
    for peer in &mut peers {
        let _ = peer.write_all(b"x");
        assert_eq!(peer.read_rest().unwrap_or_default(), b"");
    }
    drop(peers);
    eventually("nobody is open", || {
        others.settled().open_connections == 0 && own.settled().open_connections == 0
    });
}
