//! Servers that hand their listeners over: nobody who connects meanwhile is refused or reset.

mod support;

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Address, Listener, Server, restart};
use support::{Family, PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    restarts_under_load_lose_nobody,
    a_process_that_does_not_confirm_has_taken_nothing,
    who_confirms_too_late_is_told,
    one_of_two_takes_over,
    who_comes_second_is_told_though_nobody_is_there_any_more,
    what_is_no_handover_is_refused,
);

const RESTARTS: usize = 20;

/// Takes over from a server, which is shut down then.
fn restarted(setup: Setup, old: Server) -> Server {
    let (theirs, ours) = UnixStream::pair().expect("a pair");
    thread::scope(|scope| {
        let hands = scope.spawn(move || {
            restart::hand_over(&[&old], &theirs).expect("taken over");
            assert_eq!(old.shutdown(PATIENCE), 0);
        });
        let mut taken = restart::take_over(ours).expect("listeners");
        let mut listeners = taken.listeners().into_iter();
        let first = listeners.next().expect("a listener");
        let service = setup.builder().pollers(2).on_request(support::echo);
        let new = service.serve(first).expect("a server");
        for listener in listeners {
            new.listen(listener).expect("it listens");
        }
        taken.confirm().expect("the other waits");
        hands.join().expect("no panic");
        new
    })
}

/// Connects, talks and leaves, and keeps some for long, while the server is restarted time and again.
fn under_load(setup: Setup, listener: Listener) {
    let address = listener.local_addr().expect("bound");
    let service = setup.builder().pollers(2).on_request(support::echo);
    let mut server = Some(service.serve(listener).expect("a server"));
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let begun = Instant::now();
                while !over.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
                    // A server that shuts down ends those that are between two requests.
                    let mut peer = Peer::connect(&address);
                    assert_eq!(peer.round_trip(b"hello"), b"hello");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..RESTARTS {
            let before = served.load(Ordering::Relaxed);
            server = server.take().map(|old| restarted(setup, old));
            eventually("they are served", || served.load(Ordering::Relaxed) >= before + 20);
        }
        over.store(true, Ordering::Relaxed);
    });
    if let Address::Unix(path) = &address {
        assert!(path.exists());
        drop(server);
        assert!(!path.exists(), "nobody has removed the socket file");
    }
}

fn restarts_under_load_lose_nobody(setup: Setup) {
    under_load(setup, setup.listener());
    if !matches!(setup.family, Family::Unix) {
        // A socket for each poller, each with a queue of its own.
        let address = setup.listener().local_addr().expect("bound");
        let Address::Tcp(mut address) = address else { panic!("not TCP") };
        address.set_port(0);
        let listener = Listener::options().reuse_port(true).bind(Address::from(address));
        under_load(setup, listener.expect("bound"));
    }
}

fn a_process_that_does_not_confirm_has_taken_nothing(setup: Setup) {
    let server = setup.serve_echo();
    for _ in 0..2 {
        let (theirs, ours) = UnixStream::pair().expect("a pair");
        thread::scope(|scope| {
            let hands = scope.spawn(|| restart::hand_over(&[&server], &theirs));
            let mut taken = restart::take_over(ours).expect("listeners");
            let listeners = taken.listeners();
            assert_eq!(listeners[0].local_addr().expect("bound"), *server.local_addr());
            drop(listeners);
            drop(taken);
            let error = hands.join().expect("no panic").expect_err("nobody has confirmed");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        });
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.round_trip(b"on"), b"on");
    }
    let (theirs, _ours) = UnixStream::pair().expect("a pair");
    assert_eq!(server.shutdown(PATIENCE), 0);
    let error = restart::hand_over(&[&server], &theirs).expect_err("it is over");
    assert_eq!(error.kind(), ErrorKind::NotConnected);
}

fn who_confirms_too_late_is_told(setup: Setup) {
    let server = setup.serve_echo();
    let (theirs, ours) = UnixStream::pair().expect("a pair");
    theirs.set_read_timeout(Some(Duration::from_millis(10))).expect("a timeout");
    let error = restart::hand_over(&[&server], &theirs).expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(theirs);
    let taken = restart::take_over(ours).expect("listeners");
    let error = taken.confirm().expect_err("the other serves on");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"on"), b"on");
}

fn one_of_two_takes_over(setup: Setup) {
    let server = &setup.serve_echo();
    thread::scope(|scope| {
        let attempts = [(); 2].map(|()| {
            let (theirs, ours) = UnixStream::pair().expect("a pair");
            let hands = scope.spawn(move || restart::hand_over(&[server], &theirs).is_ok());
            (hands, restart::take_over(ours).expect("listeners"))
        });
        let taken = attempts.map(|(hands, taken)| {
            let confirmed = taken.confirm().is_ok();
            assert_eq!(hands.join().expect("no panic"), confirmed);
            confirmed
        });
        assert_eq!(taken, [true, false]);
    });
}

fn who_comes_second_is_told_though_nobody_is_there_any_more(setup: Setup) {
    let server = setup.serve_echo();
    let [first, second] = [(); 2].map(|()| UnixStream::pair().expect("a pair"));
    let mut listeners = thread::scope(|scope| {
        let hands = [first.0, second.0].map(|theirs| {
            let server = &server;
            theirs.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            scope
                .spawn(move || restart::hand_over(&[server], &theirs).map_err(|error| error.kind()))
        });
        let mut first = restart::take_over(first.1).expect("listeners");
        let second = restart::take_over(second.1).expect("listeners");
        let listeners = first.listeners();
        first.confirm().expect("the first");
        let [one, other] = hands;
        assert_eq!(one.join().expect("no panic"), Ok(()));
        // The other end is closed with what it was told unread.
        let told = second.confirm().map_err(|error| error.kind());
        assert_eq!(told, Err(ErrorKind::NotConnected));
        assert_eq!(other.join().expect("no panic"), Err(ErrorKind::NotConnected));
        listeners
    });
    server.shutdown(PATIENCE);
    let listener = listeners.remove(0);
    let server = setup.builder().on_request(support::echo).serve(listener).expect("a server");
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"on"), b"on");
}

fn what_is_no_handover_is_refused(_: Setup) {
    use std::io::Write;
    for (sent, expected) in [
        (&b""[..], ErrorKind::UnexpectedEof),
        (b"duopoll1\0\0\0", ErrorKind::UnexpectedEof),
        (b"duopoll0\0\0\0\0", ErrorKind::InvalidData),
        (b"duopoll1\xff\xff\xff\xff", ErrorKind::InvalidData),
        (b"duopoll1\0\0\0\x01\0", ErrorKind::UnexpectedEof),
        // A byte without a descriptor.
        (b"duopoll1\0\0\0\x01\0x", ErrorKind::InvalidData),
    ] {
        let (mut theirs, ours) = UnixStream::pair().expect("a pair");
        theirs.write_all(sent).expect("sent");
        drop(theirs);
        let error = restart::take_over(ours).expect_err("nothing came");
        assert_eq!(error.kind(), expected, "{sent:?}");
    }
}
