//! Callbacks, wakers and owners of bytes that panic: they end what they belong to, and no poller.

mod support;

use std::io::{self, ErrorKind, Read};
use std::panic;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread;

use bytes::Bytes;
use duopoll::{Connection, Limits, Pollers, Server};
use pollster::block_on;
use support::settled::Settled;
use support::{Peer, Setup, connected, echo};

on_every_setup!(
    a_panic_before_a_connection_is_served_ends_it_alone,
    a_panic_of_a_handler_for_a_whole_connection_ends_it_alone,
    a_panic_of_its_executor_ends_it_alone,
    a_waker_of_an_accept_that_panics_ends_nothing,
    wakers_of_a_connection_that_panic_end_nothing,
    an_owner_of_bytes_that_panics_ends_nothing,
    wherever_it_panics_others_are_served,
    a_waker_that_panics_as_it_is_dropped_ends_nothing,
    several_that_panic_at_the_end_of_a_poller_abort_nothing,
    an_end_is_told_whatever_the_error_does,
);

/// What the first caller gets.
fn panics_once(before: &AtomicBool) {
    if !before.swap(true, Ordering::Relaxed) {
        panic::resume_unwind(Box::new("as the test wants it"));
    }
}

/// The first connection is over without an answer, and the second is answered.
fn the_first_alone_is_lost(server: &Server) {
    let mut first = Peer::connect(server.local_addr());
    let mut rest = Vec::new();
    match first.read_to_end(&mut rest) {
        Ok(_) => assert!(rest.is_empty(), "nobody serves it"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    let mut second = Peer::connect(server.local_addr());
    assert_eq!(second.round_trip(b"alive"), b"alive");
    assert_eq!(server.settled().failed_pollers, 0);
    assert_eq!(server.settled().handler_panics, 1);
}

fn a_panic_before_a_connection_is_served_ends_it_alone(setup: Setup) {
    let before = AtomicBool::new(false);
    let builder = setup.builder().on_prepare(move |_| {
        panics_once(&before);
        Ok(())
    });
    let server = builder.on_request(echo).serve(setup.listener()).expect("a server");
    the_first_alone_is_lost(&server);
}

/// Serves a whole connection on a thread of its own.
async fn echoes(mut connection: Connection) -> io::Result<()> {
    while connection.next_request().await? {
        echo(&mut connection).await?;
    }
    Ok(())
}

fn a_panic_of_a_handler_for_a_whole_connection_ends_it_alone(setup: Setup) {
    let before = AtomicBool::new(false);
    let spawn = |task| {
        thread::spawn(|| block_on(task));
    };
    let service = setup.builder().on_connection_spawned(spawn, move |connection| {
        panics_once(&before);
        echoes(connection)
    });
    the_first_alone_is_lost(&service.serve(setup.listener()).expect("a server"));
}

fn a_panic_of_its_executor_ends_it_alone(setup: Setup) {
    let before = AtomicBool::new(false);
    let spawn = move |task| {
        panics_once(&before);
        thread::spawn(|| block_on(task));
    };
    let service = setup.builder().on_connection_spawned(spawn, echoes);
    the_first_alone_is_lost(&service.serve(setup.listener()).expect("a server"));
}

/// Panics when it is called, and says that it was.
struct Panics(AtomicBool);

impl Panics {
    fn waker() -> (Arc<Panics>, Waker) {
        let panics = Arc::new(Panics(AtomicBool::new(false)));
        (panics.clone(), Waker::from(panics))
    }

    fn was_called(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
        panic::resume_unwind(Box::new("as the test wants it"));
    }
}

fn a_waker_of_an_accept_that_panics_ends_nothing(setup: Setup) {
    let pollers = setup.pollers(1);
    let listener = setup.listener().pollers(pollers.clone());
    let address = listener.local_addr().expect("bound");
    let (panics, waker) = Panics::waker();
    let mut accept = Box::pin(listener.accept());
    assert!(accept.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let _peer = Peer::connect(&address);
    support::eventually("the waker is called", || panics.was_called());
    assert!(block_on(accept).is_ok());
    assert_eq!(pollers.settled().failed_pollers, 0);
}

fn wakers_of_a_connection_that_panic_end_nothing(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let (panics, waker) = Panics::waker();
    {
        let mut read = pin!(connection.next(5));
        assert!(read.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        io::Write::write_all(&mut peer, b"bytes").expect("sent");
        support::eventually("the waker is called", || panics.was_called());
    }
    assert_eq!(block_on(connection.next(5)).expect("they came"), b"bytes");
    assert_eq!(pollers.settled().failed_pollers, 0);
}

/// Bytes whose owner panics as it is dropped.
struct Owner(Arc<AtomicBool>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        b"owned"
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        panic::resume_unwind(Box::new("as the test wants it"));
    }
}

fn an_owner_of_bytes_that_panics_ends_nothing(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let dropped = Arc::new(AtomicBool::new(false));
    for _ in 0..2 {
        connection.push(Bytes::from_owner(Owner(dropped.clone())));
        block_on(connection.drain()).expect("the kernel takes it");
        let mut bytes = [0; 5];
        peer.read_exact(&mut bytes).expect("it is sent");
        assert_eq!(&bytes, b"owned");
    }
    support::eventually("the owner is dropped", || dropped.load(Ordering::Relaxed));
    assert_eq!(pollers.settled().failed_pollers, 0);
}

/// Where something of a user's panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Prepare,
    Connect,
    Request,
    Disconnect,
    Close,
    Bytes,
    Future,
    State,
}

/// Panics as it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic::resume_unwind(Box::new("as the test wants it"));
        }
    }
}

struct Bytes1(Bomb);

impl AsRef<[u8]> for Bytes1 {
    fn as_ref(&self) -> &[u8] {
        let _ = &self.0;
        b"bytes"
    }
}

fn panic_if(is_here: bool) {
    if is_here {
        panic::resume_unwind(Box::new("as the test wants it"));
    }
}

/// A server on these pollers that panics at a place, for each of its connections.
fn bad_server(setup: Setup, pollers: &Pollers, place: Place) -> Server {
    duopoll::EventLoop::builder()
        .on(pollers.clone())
        .on_prepare(move |_| {
            panic_if(place == Place::Prepare);
            Ok(())
        })
        .on_connect(async move |connection: &mut Connection| {
            panic_if(place == Place::Connect);
            if place == Place::Close {
                let _ = connection.on_close(|| panic_if(true));
            }
            if place == Place::State {
                connection.set_state(Bomb);
            }
            Ok(())
        })
        .on_disconnect(async move |_: &mut Connection| panic_if(place == Place::Disconnect))
        .on_request(async move |connection: &mut Connection| {
            panic_if(place == Place::Request);
            let _bomb = (place == Place::Future).then_some(Bomb);
            let len = connection.input_mut().len();
            connection.skip(len).await?;
            if place == Place::Bytes {
                connection.push(Bytes::from_owner(Bytes1(Bomb)));
            }
            connection.flush().await?;
            if place == Place::Future {
                // Until the connection is ended, and the future dropped.
                connection.next(1).await?;
            }
            Ok(())
        })
        .serve(setup.listener())
        .expect("a server")
}

fn wherever_it_panics_others_are_served(setup: Setup) {
    const REQUESTS: usize = 1000;
    let pollers = setup.pollers(1);
    let good = duopoll::EventLoop::builder().on(pollers.clone()).on_request(echo);
    let good = good.serve(setup.listener()).expect("a server");
    let places = [
        Place::Prepare,
        Place::Connect,
        Place::Request,
        Place::Disconnect,
        Place::Close,
        Place::Bytes,
        Place::Future,
        Place::State,
    ];
    let contained = pollers.settled().contained_panics;
    thread::scope(|scope| {
        let served = scope.spawn(|| {
            let mut peer = Peer::connect(good.local_addr());
            for request in 0..REQUESTS {
                let request = request.to_be_bytes();
                assert_eq!(peer.round_trip(&request), request);
            }
        });
        for place in places {
            let server = bad_server(setup, &pollers, place);
            for _ in 0..3 {
                let mut peer = Peer::connect(server.local_addr());
                let _ = io::Write::write_all(&mut peer, b"x");
                peer.shutdown(std::net::Shutdown::Write);
                let _ = peer.read_to_end(&mut Vec::new());
            }
            let _ = server.shutdown(support::PATIENCE);
        }
        served.join().expect("all are answered");
    });
    let stats = pollers.settled();
    assert_eq!(stats.failed_pollers, 0);
    let counted = stats.contained_panics - contained + stats.handler_panics;
    assert!(counted >= 3 * places.len() as u64, "{counted} of {}", 3 * places.len());
}

/// Panics when the last of its wakers is dropped, if it is to.
struct Fragile(AtomicBool);

impl Wake for Fragile {
    fn wake(self: Arc<Self>) {
        panic_if(self.0.load(Ordering::SeqCst));
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        panic_if(self.0.load(Ordering::SeqCst));
    }
}

fn a_waker_that_panics_as_it_is_dropped_ends_nothing(setup: Setup) {
    let pollers = setup.pollers(1);
    let fragile = Arc::new(Fragile(AtomicBool::new(false)));
    let waker = Waker::from(fragile.clone());
    // Set there, and taken back from here.
    let make = move || async move {
        let mut sleep = duopoll::time::sleep(support::PATIENCE);
        let pin = std::pin::Pin::new(&mut sleep);
        assert!(pin.poll(&mut Context::from_waker(&waker)).is_pending());
        Some(sleep)
    };
    let sleep = block_on(pollers.spawn(make)).expect("no panic");
    fragile.0.store(true, Ordering::SeqCst);
    drop(fragile);
    drop(sleep);
    support::eventually("the timer is gone", || pollers.settled().timers == 0);
    assert_eq!(pollers.settled().failed_pollers, 0);
    assert_eq!(block_on(pollers.spawn(|| async { 1 })).expect("it goes on"), 1);
}

fn several_that_panic_at_the_end_of_a_poller_abort_nothing(setup: Setup) {
    let pollers = setup.pollers(1);
    let fragile = Arc::new(Fragile(AtomicBool::new(true)));
    let waker = Waker::from(fragile.clone());
    // Calls that come while the poller is told to end: each wakes with what it carries.
    let busy = pollers.clone();
    let ended = pollers.spawn(move || async move {
        let mut asked = Vec::new();
        for _ in 0..5 {
            let (one, other) = std::os::unix::net::UnixStream::pair().expect("two sockets");
            let adopt = busy.clone();
            let mut adopting = Box::pin(async move { adopt.adopt(one).await.map(drop) });
            assert!(adopting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            asked.push((adopting, other));
        }
        busy.stop();
        for _ in 0..5 {
            let mut pending = Box::pin(busy.spawn(std::future::pending::<()>));
            let _ = pending.as_mut().poll(&mut Context::from_waker(&waker));
            std::mem::forget(pending);
        }
        std::mem::forget(asked);
        std::future::pending::<()>().await;
    });
    assert!(block_on(ended).expect_err("its poller has ended").is_cancelled());
    std::mem::forget(fragile);
    let late = block_on(pollers.spawn(|| async {})).expect_err("they have ended");
    assert!(late.is_cancelled());
}

/// An error that panics when it is shown, and when it is dropped.
#[derive(Debug)]
struct Nasty;

impl std::fmt::Display for Nasty {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic_if(true);
        Ok(())
    }
}

impl std::error::Error for Nasty {}

impl Drop for Nasty {
    fn drop(&mut self) {
        panic_if(true);
    }
}

fn an_end_is_told_whatever_the_error_does(setup: Setup) {
    let (tell, told) = std::sync::mpsc::channel();
    let builder = setup.builder().on_disconnect(async move |_: &mut Connection| {
        tell.send(()).expect("the test waits");
        panic_if(true);
    });
    let service = builder.on_request(async |_: &mut Connection| Err(io::Error::other(Nasty)));
    let server = service.serve(setup.listener()).expect("a server");
    for round in 1..=3 {
        let mut peer = Peer::connect(server.local_addr());
        io::Write::write_all(&mut peer, b"x").expect("sent");
        told.recv_timeout(support::PATIENCE).expect("on_disconnect is called");
        support::eventually("it is counted", || server.server_stats().handler_panics == round);
    }
    let stats = server.settled();
    assert_eq!((stats.handler_errors, stats.handler_panics, stats.failed_pollers), (3, 3, 0));
}
