//! Options of sockets, and the hooks that set them.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Duration;

use duopoll::{Connection, Control, Dialer, Keepalive, Listener, Server};
use pollster::block_on;
use socket2::SockRef;
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    keepalive_and_user_timeout_reach_the_socket,
    accepted_connections_inherit_what_the_listener_has,
    a_dialer_prepares_its_sockets,
    a_paused_connection_receives_nothing,
    the_end_is_told_once,
    the_end_is_told_though_nobody_reads,
    a_reset_is_told,
);

fn keepalive() -> Keepalive {
    Keepalive::after(Duration::from_secs(61)).interval(Duration::from_secs(7)).count(4)
}

/// Idle time, interval, count and user timeout, if keepalive is on.
fn options_of(socket: &impl AsFd) -> Option<(Duration, Duration, u32, Option<Duration>)> {
    let socket = SockRef::from(socket);
    socket.keepalive().expect("a socket").then(|| {
        (
            socket.tcp_keepalive_time().expect("TCP"),
            socket.tcp_keepalive_interval().expect("TCP"),
            socket.tcp_keepalive_retries().expect("TCP"),
            socket.tcp_user_timeout().expect("TCP"),
        )
    })
}

const EXPECTED: Option<(Duration, Duration, u32, Option<Duration>)> =
    Some((Duration::from_secs(61), Duration::from_secs(7), 4, Some(Duration::from_millis(4500))));

fn keepalive_and_user_timeout_reach_the_socket(setup: Setup) {
    let server = setup.serve_echo();
    let dialer = Dialer::new();
    let connection = block_on(dialer.dial_addr(server.local_addr().clone())).expect("dialed");
    let set = connection
        .set_keepalive(Some(keepalive()))
        .and_then(|()| connection.set_user_timeout(Some(Duration::from_millis(4500))));
    let dialer = dialer.keepalive(keepalive()).user_timeout(Duration::from_millis(4500));
    let dialed = block_on(dialer.dial_addr(server.local_addr().clone()));
    if setup.family == Family::Unix {
        assert_eq!(set.expect_err("no TCP").kind(), ErrorKind::Unsupported);
        assert_eq!(dialed.expect_err("no TCP").kind(), ErrorKind::Unsupported);
        return;
    }
    set.expect("set");
    assert_eq!(options_of(&connection), EXPECTED);
    connection.set_keepalive(None).expect("off");
    assert_eq!(options_of(&connection), None);
    assert_eq!(options_of(&dialed.expect("dialed")), EXPECTED);
}

fn accepted_connections_inherit_what_the_listener_has(setup: Setup) {
    let options = Listener::options();
    let options = options.keepalive(keepalive()).user_timeout(Duration::from_millis(4500));
    let address = match setup.family {
        Family::V4 => "127.0.0.1:0",
        Family::V6 => "[::1]:0",
        Family::Unix => "unix:@duopoll-options",
    };
    let listener = match options.bind(address) {
        Err(error) => {
            assert_eq!((setup.family, error.kind()), (Family::Unix, ErrorKind::Unsupported));
            return;
        }
        Ok(listener) => listener,
    };
    let (tell, told) = mpsc::channel();
    let service = setup.builder().on_prepare(move |socket| {
        tell.send(options_of(&socket)).expect("the test waits");
        Ok(())
    });
    let server = service.on_request(support::echo).serve(listener).expect("a server");
    let _peer = Peer::connect(server.local_addr());
    assert_eq!(told.recv_timeout(PATIENCE).expect("prepared"), EXPECTED);
}

fn a_dialer_prepares_its_sockets(setup: Setup) {
    let server = setup.serve_echo();
    let dialer = Dialer::new().prepare(|socket| {
        assert!(SockRef::from(&socket).peer_addr().is_err(), "it is connected already");
        SockRef::from(&socket).set_send_buffer_size(12_345)
    });
    let connection = block_on(dialer.dial_addr(server.local_addr().clone())).expect("dialed");
    // The kernel doubles it.
    assert_eq!(SockRef::from(&connection).send_buffer_size().expect("a socket"), 24_690);
    let refuses = Dialer::new().prepare(|_| Err(ErrorKind::PermissionDenied.into()));
    let refused = block_on(refuses.dial_addr(server.local_addr().clone()));
    assert_eq!(refused.expect_err("refused").kind(), ErrorKind::PermissionDenied);
}

/// A server whose connections tell of themselves, and count what they have received.
fn pausing(setup: Setup) -> (Server, mpsc::Receiver<Control>) {
    let (tell, told) = mpsc::channel();
    let service = setup.builder().on_connect(async move |connection: &mut Connection| {
        tell.send(connection.control()).expect("the test waits");
        Ok(())
    });
    let server = service.on_request(support::echo).serve(setup.listener()).expect("a server");
    (server, told)
}

fn a_paused_connection_receives_nothing(setup: Setup) {
    let (server, told) = pausing(setup);
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"before"), b"before");
    let control = told.recv_timeout(PATIENCE).expect("connected");
    control.pause();
    // Both are commands to the same poller, in this order.
    server.settled();
    // One receive may be under way.
    peer.write_all(b"one").expect("sent");
    let mut sent = 3;
    let mut received = server.settled().received_bytes;
    // Until nothing moves any more: more than any receive takes.
    peer.set_timeout(Duration::from_millis(200));
    let chunk = [7; 64 << 10];
    while let Ok(n) = peer.write(&chunk) {
        sent += n as u64;
        assert!(sent < 256 << 20, "nothing holds the peer back");
    }
    peer.set_timeout(PATIENCE);
    received = server.settled().received_bytes.max(received);
    assert!(received <= 6 + setup.overrun_bytes(), "{received} bytes were received");
    control.resume();
    let mut echoed = 0;
    let mut buffer = vec![0; 1 << 20];
    while echoed < sent {
        echoed += peer.read(&mut buffer).expect("echoed") as u64;
    }
    assert_eq!(server.settled().received_bytes, sent + 6);
}

fn dial(server: &Server) -> Connection {
    block_on(Dialer::new().dial_addr(server.local_addr().clone())).expect("dialed")
}

fn told_of_the_end(control: &Control) -> mpsc::Receiver<u8> {
    let (tell, told) = mpsc::channel();
    for number in 0..2 {
        let tell = tell.clone();
        control.on_close(move || {
            let _ = tell.send(number);
        });
    }
    told
}

fn the_end_is_told_once(setup: Setup) {
    let server = setup.serve_echo();
    let mut connection = dial(&server);
    let told = told_of_the_end(&connection.control());
    assert!(told.try_recv().is_err());
    connection.close();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(1), "the last first");
    assert_eq!(told.recv_timeout(PATIENCE), Ok(0));
    let late = told_of_the_end(&connection.control());
    assert_eq!(late.try_iter().collect::<Vec<_>>(), [0, 1], "it is over already");
    drop(connection);
    assert!(told.recv().is_err(), "told again");
}

fn the_end_is_told_though_nobody_reads(setup: Setup) {
    let server = setup.serve_echo();
    let connection = dial(&server);
    let told = told_of_the_end(&connection.control());
    eventually("it is accepted", || server.settled().connections == 1);
    server.shutdown(Duration::ZERO);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(1));
    assert!(!connection.is_active());
}

fn a_reset_is_told(setup: Setup) {
    let (server, control) = pausing(setup);
    let peer = Peer::connect(server.local_addr());
    let told = told_of_the_end(&control.recv_timeout(PATIENCE).expect("connected"));
    peer.reset();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(1));
    eventually("it is over", || server.settled().closed == 1);
}
