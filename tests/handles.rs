//! What handles on connections and servers tell, and what they change.

mod support;

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use duopoll::{Connection, Control, Dialer, Limits};
use pollster::block_on;
use support::{Family, PATIENCE, Peer, Setup, connected, eventually, poll_once};

on_every_setup!(
    every_connection_has_a_number_of_its_own,
    the_peer_is_remembered_after_a_reset,
    the_end_is_told,
    callbacks_can_be_taken_back,
    draining_is_told,
    a_graceful_shutdown_ends_when_the_busy_ones_do,
    limits_change_while_a_server_runs,
    state_need_not_be_send,
    a_connection_keeps_its_pollers,
);

fn needs_both<T: Send + Sync>() {}

#[test]
fn connections_and_handles_can_be_shared() {
    needs_both::<Connection>();
    needs_both::<Control>();
    needs_both::<duopoll::Watch>();
    needs_both::<duopoll::Reader>();
    needs_both::<duopoll::Writer>();
}

fn every_connection_has_a_number_of_its_own(setup: Setup) {
    let mut numbers = HashSet::new();
    for _ in 0..2 {
        let pollers = setup.pollers(2);
        let listener = setup.listener().pollers(pollers);
        let address = listener.local_addr().expect("bound");
        for _ in 0..20 {
            let _peer = Peer::connect(&address);
            let connection = block_on(listener.accept()).expect("accepted");
            let number = connection.id();
            assert_eq!(connection.control().id(), number);
            let (reader, writer) = connection.into_split();
            assert_eq!((reader.id(), writer.id()), (number, number));
            assert!(numbers.insert(number), "{number} was there before");
        }
    }
}

fn the_peer_is_remembered_after_a_reset(setup: Setup) {
    let (_pollers, mut connection, peer) = connected(setup, Limits::default());
    let (Peer::Tcp(stream), true) = (&peer, setup.family != Family::Unix) else { return };
    let address = stream.local_addr().expect("bound");
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(peer);
    let error = block_on(connection.more()).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert_eq!(connection.peer_addr().expect("remembered"), address.into());
    connection.local_addr().expect("the kernel knows");
    let control = connection.control();
    let (reader, writer) = connection.into_split();
    assert_eq!((reader.peer_addr(), writer.peer_addr()), (Some(address), Some(address)));
    drop((reader, writer));
    assert_eq!(control.peer_addr(), Some(address));
}

fn the_end_is_told(setup: Setup) {
    let (_pollers, mut connection, peer) = connected(setup, Limits::default());
    let control = connection.control();
    let mut closed = pin!(control.closed());
    assert!(poll_once(closed.as_mut()).is_pending());
    thread::scope(|scope| {
        scope.spawn(|| drop(peer));
        block_on(closed);
    });
    // It has been found out already.
    block_on(control.closed());
    // The peer could wait for a reply.
    let mut draining = pin!(control.draining());
    assert!(poll_once(draining.as_mut()).is_pending());
    connection.close();
    block_on(draining);
    block_on(control.draining());
    assert!(!control.is_draining());
}

fn callbacks_can_be_taken_back(setup: Setup) {
    let (_pollers, connection, _peer) = connected(setup, Limits::default());
    let control = connection.control();
    let (tell, told) = mpsc::channel();
    let numbers: Vec<_> = (0..3)
        .map(|number| {
            let tell = tell.clone();
            control.on_close(move || tell.send(number).expect("the test waits"))
        })
        .collect();
    let second = numbers[1].expect("it is open");
    assert!(control.remove_callback(second));
    assert!(!control.remove_callback(second), "it is gone");
    for _ in 0..1000 {
        // Dropped, each leaves nothing.
        assert!(poll_once(pin!(control.closed())).is_pending());
    }
    connection.abort();
    drop(tell);
    let called: Vec<_> = told.iter().collect();
    assert_eq!(called, [2, 0]);
    assert!(!control.remove_callback(numbers[0].expect("it was open")), "it was called");
}

fn draining_is_told(setup: Setup) {
    // A handler that streams until it is to come to an end.
    let server = setup.serve(async |connection: &mut Connection| {
        let len = connection.input_mut().len();
        connection.skip(len).await?;
        let control = connection.control();
        control.draining().await;
        assert!(control.is_draining());
        connection.write(b"bye")?;
        connection.flush().await
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    eventually("it streams", || server.server_stats().requests == 1);
    assert_eq!(server.shutdown(PATIENCE), 0);
    assert_eq!(peer.read_rest().expect("the end"), b"bye");
}

fn a_graceful_shutdown_ends_when_the_busy_ones_do(setup: Setup) {
    const IDLE: usize = 200;
    const BUSY: usize = 10;
    let (finish, finished) = async_gate();
    let service = setup.builder().on_request(async move |connection: &mut Connection| {
        let request = connection.next(1).await?;
        if request[..] == b"b"[..] {
            finished.clone().await;
        }
        connection.push(request);
        connection.flush().await
    });
    let server = service.serve(setup.listener()).expect("a server");
    let mut idle: Vec<_> = (0..IDLE).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut idle {
        assert_eq!(peer.round_trip(b"i"), b"i");
    }
    let mut busy: Vec<_> = (0..BUSY).map(|_| Peer::connect(server.local_addr())).collect();
    busy.iter_mut().for_each(|peer| peer.write_all(b"b").expect("sent"));
    eventually("they are busy", || server.server_stats().requests == (IDLE + BUSY) as u64);
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        // At once, while the others are busy.
        for peer in &mut idle {
            assert_eq!(peer.read_rest().expect("the end"), b"");
        }
        drop(idle);
        assert!(!shutdown.is_finished());
        finish.open();
        for peer in &mut busy {
            assert_eq!(peer.read_rest().expect("the end"), b"b");
        }
        drop(busy);
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
}

/// Something to wait for on many tasks.
fn async_gate() -> (Gate, Waits) {
    let shared = std::sync::Arc::new(std::sync::Mutex::new((false, Vec::new())));
    (Gate(shared.clone()), Waits(shared))
}

type Shared = std::sync::Arc<std::sync::Mutex<(bool, Vec<std::task::Waker>)>>;

struct Gate(Shared);

impl Gate {
    fn open(&self) {
        let mut shared = self.0.lock().expect("no panic");
        shared.0 = true;
        shared.1.drain(..).for_each(std::task::Waker::wake);
    }
}

#[derive(Clone)]
struct Waits(Shared);

impl Future for Waits {
    type Output = ();

    fn poll(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<()> {
        let mut shared = self.0.lock().expect("no panic");
        if shared.0 {
            return std::task::Poll::Ready(());
        }
        shared.1.push(cx.waker().clone());
        std::task::Poll::Pending
    }
}

fn limits_change_while_a_server_runs(setup: Setup) {
    let service = setup.builder().max_connections(1).on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let mut first = Peer::connect(server.local_addr());
    assert_eq!(first.round_trip(b"x"), b"x");
    let mut second = Peer::connect(server.local_addr());
    second.write_all(b"y").expect("sent");
    eventually("it waits", || server.server_stats().waiting_connections == 1);
    assert_eq!(server.open_connections(), 1);
    server.set_max_connections(None);
    let mut echo = [0];
    second.read_exact(&mut echo).expect("let in");
    assert_eq!((server.open_connections(), server.server_stats().accepts), (2, 2));

    let controls = block_on(server.connections());
    assert_eq!(controls.len(), 2);
    controls.iter().for_each(Control::abort);
    eventually("all are over", || server.open_connections() == 0);

    let mut limits = Limits::default();
    limits.message_bytes_max = 8;
    server.set_limits(limits).expect("no engine refuses that");
    // The handler takes everything, so nothing is left that could be too much.
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"z"), b"z");
}

fn state_need_not_be_send(setup: Setup) {
    let service = setup.builder().on_request_with(
        async |_: &mut Connection| Ok(Rc::new(Cell::new(0_u8))),
        async |connection: &mut Connection, requests: &mut Rc<Cell<u8>>| {
            connection.next(1).await?;
            requests.set(requests.get() + 1);
            connection.write(&[requests.get()])
        },
    );
    let server = service.serve(setup.listener()).expect("a server");
    let mut peers = [Peer::connect(server.local_addr()), Peer::connect(server.local_addr())];
    for round in 1..=3 {
        for peer in &mut peers {
            assert_eq!(peer.round_trip(b"x"), [round]);
        }
    }
}

fn a_connection_keeps_its_pollers(setup: Setup) {
    let server = setup.serve_echo();
    // As a helper does that dials with pollers of its own.
    let connection = {
        let pollers = setup.pollers(1);
        block_on(Dialer::new().pollers(pollers).dial_addr(server.local_addr().clone()))
    };
    let mut connection = connection.expect("connected");
    for _ in 0..3 {
        connection.write(b"x").expect("it is open");
        block_on(connection.flush()).expect("it is open");
        assert_eq!(block_on(connection.next(1)).expect("echoes"), b"x"[..]);
    }
    let closed = connection.control();
    let (mut reader, writer) = connection.into_split();
    drop(writer);
    assert!(!block_on(reader.more()).expect("the end"));
    drop(reader);
    block_on(closed.closed());
}
