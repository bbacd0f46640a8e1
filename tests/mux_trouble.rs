//! Calls in trouble: ends in the middle, handlers and protocols that fail, servers that go away.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use duopoll::mux::{CALLS_MAX, Client, Head, Kind, Plain, Pool, Protocol, serve};
use duopoll::task::TaskGroup;
use duopoll::time::sleep;
use duopoll::{Connection, Dialer, LinkBuffer, Pollers, Server, Slice};
use pollster::block_on;
use support::{PATIENCE, Peer, Setup, eventually, poll_once};

on_every_setup!(
    what_came_before_the_end_is_answered,
    calls_that_panic_as_they_are_dropped_end_alone,
    a_call_that_fails_disturbs_no_other,
    a_server_that_goes_away_answers_and_refuses,
    a_pool_leaves_a_server_that_goes_away,
    a_ping_does_not_end_a_server_that_goes_away,
    numbers_may_be_few,
    a_client_makes_no_more_calls_than_it_may,
    who_waits_for_room_has_his_turn,
    who_waits_for_room_is_told_of_the_end,
    a_shutdown_does_not_count_the_read_timeout,
    a_read_timeout_is_not_for_clients_that_wait_for_nothing,
    a_request_that_was_not_sent_comes_back,
    a_flood_of_replies_leaves_time_for_others,
);

fn server<P, H>(setup: Setup, protocol: P, calls_max: usize, handler: H) -> Server
where
    P: Protocol + Clone,
    H: AsyncFn(Slice) -> io::Result<LinkBuffer> + Clone + Send + Sync + 'static,
{
    let service = setup.builder().on_connection(async move |connection: Connection| {
        serve(connection, protocol.clone(), calls_max, handler.clone()).await
    });
    service.serve(setup.listener()).expect("a server")
}

fn dial(pollers: &Pollers, server: &Server) -> Connection {
    let dialer = Dialer::new().pollers(pollers.clone());
    block_on(dialer.dial_addr(server.local_addr().clone())).expect("connected")
}

/// A client on pollers of its own.
fn client<P: Protocol>(setup: Setup, server: &Server, protocol: P) -> (Pollers, Client<P>) {
    let pollers = setup.pollers(1);
    let entered = pollers.enter();
    let client = Client::new(dial(&pollers, server), protocol).expect("a client");
    drop(entered);
    (pollers, client)
}

fn ask<P: Protocol>(client: &Client<P>, request: &[u8]) -> io::Result<Slice> {
    block_on(client.call(&mut LinkBuffer::from(request.to_vec())))
}

fn message(kind: Kind, number: u64, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0; Plain::HEADER_BYTES];
    Plain.write(Head { kind, number, body_bytes: body.len() }, &mut message).expect("a header");
    message.extend_from_slice(body);
    message
}

/// Requests with an end right behind them, more than may be under way at once, or fewer.
fn what_came_before_the_end_is_answered(setup: Setup) {
    for calls_max in [1, 4, 64] {
        let server = server(setup, Plain, calls_max, async |request: Slice| {
            sleep(Duration::from_millis(2)).await;
            Ok(LinkBuffer::from(request))
        });
        let mut peer = Peer::connect(server.local_addr());
        let requests = (0..10).flat_map(|number| message(Kind::Request, number, b"x"));
        peer.write_all(&requests.collect::<Vec<_>>()).expect("sent");
        peer.shutdown(Shutdown::Write);
        let replies = peer.read_rest().expect("the end");
        assert_eq!(replies.len(), 10 * (Plain::HEADER_BYTES + 1), "{calls_max} at once");
        // And in front of a message that is cut off.
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(&[message(Kind::Request, 1, b"x"), vec![0; 3]].concat()).expect("sent");
        peer.shutdown(Shutdown::Write);
        assert_eq!(peer.read_rest().expect("the end"), message(Kind::Reply, 1, b"x"));
    }
}

fn calls_that_panic_as_they_are_dropped_end_alone(setup: Setup) {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("as the test wants it");
        }
    }
    let server = server(setup, Plain, CALLS_MAX, async |_: Slice| {
        let _panics = Panics;
        std::future::pending().await
    });
    let mut peer = Peer::connect(server.local_addr());
    let requests = (0..3).flat_map(|number| message(Kind::Request, number, b"x"));
    peer.write_all(&requests.chain([0xff; 13]).collect::<Vec<_>>()).expect("sent");
    let _ = peer.read_rest();
    eventually("it is an error", || server.server_stats().handler_errors == 1);
    assert_eq!(server.shutdown(PATIENCE), 0);
}

/// A protocol that cannot say everything.
#[derive(Clone)]
struct Reticent;

impl Protocol for Reticent {
    const HEADER_BYTES: usize = Plain::HEADER_BYTES;

    fn read(&self, header: &[u8]) -> io::Result<Head> {
        Plain.read(header)
    }

    fn write(&self, head: Head, header: &mut [u8]) -> io::Result<()> {
        if head.kind == Kind::GoingAway || head.body_bytes > 100 {
            return Err(io::Error::other("unspeakable"));
        }
        Plain.write(head, header)
    }
}

fn a_call_that_fails_disturbs_no_other(setup: Setup) {
    #[derive(Debug)]
    struct Unnameable;
    impl std::fmt::Display for Unnameable {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("as the test wants it");
        }
    }
    impl std::error::Error for Unnameable {}

    let gate = TaskGroup::new();
    let opens = gate.clone();
    // Not an async closure: it panics before there is a future.
    let handler = move |request: Slice| {
        assert_ne!(request[0], b'p', "as the test wants it");
        let opens = opens.clone();
        async move {
            match request[0] {
                b'w' => {
                    opens.closing().await;
                    Ok(LinkBuffer::from(request))
                }
                b'l' => Ok(LinkBuffer::from(vec![0; 1000])),
                _ => Err(io::Error::other(Unnameable)),
            }
        }
    };
    let server = server(setup, Reticent, CALLS_MAX, handler);
    let (_pollers, client) = client(setup, &server, Reticent);
    thread::scope(|scope| {
        let waits = scope.spawn(|| ask(&client, b"w"));
        eventually("it waits", || client.calls() == 1);
        let text = |request: &[u8]| ask(&client, request).expect_err("it fails").to_string();
        assert_eq!(text(b"p"), "the handler has panicked");
        assert_eq!(text(b"l"), "unspeakable");
        assert_eq!(text(b"d"), "");
        gate.close();
        assert_eq!(waits.join().expect("no panic").expect("a reply"), b"w");
    });
    // A request of that kind is an error of its own.
    assert_eq!(ask(&client, &[b'w'; 101]).expect_err("too long").to_string(), "unspeakable");
    assert_eq!(ask(&client, b"w").expect("a reply"), b"w");
    assert_eq!(server.shutdown(PATIENCE), 0);
}

/// A server whose calls wait for a gate, and tell when they have begun.
fn gated(setup: Setup) -> (Server, TaskGroup, mpsc::Receiver<()>) {
    let (begun, begins) = mpsc::channel();
    let gate = TaskGroup::new();
    let opens = gate.clone();
    let server = server(setup, Plain, CALLS_MAX, async move |request: Slice| {
        let _ = begun.send(());
        opens.closing().await;
        Ok(LinkBuffer::from(request))
    });
    (server, gate, begins)
}

fn a_server_that_goes_away_answers_and_refuses(setup: Setup) {
    let (server, gate, begins) = gated(setup);
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(&message(Kind::Request, 1, b"x")).expect("sent");
    begins.recv_timeout(PATIENCE).expect("it is called");
    let read = |peer: &mut Peer, kind, number, body: &[u8]| {
        let expected = message(kind, number, body);
        let mut bytes = vec![0; expected.len()];
        peer.read_exact(&mut bytes).expect("a message");
        assert_eq!(bytes, expected);
    };
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        read(&mut peer, Kind::GoingAway, 0, b"");
        peer.write_all(&message(Kind::Request, 2, b"y")).expect("sent");
        read(&mut peer, Kind::Refused, 2, b"");
        peer.write_all(&message(Kind::Ping, 3, b"")).expect("sent");
        read(&mut peer, Kind::Pong, 3, b"");
        gate.close();
        read(&mut peer, Kind::Reply, 1, b"x");
        read(&mut peer, Kind::GoingAway, 0, b"");
        assert_eq!(peer.read_rest().expect("the end"), b"");
        drop(peer);
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
}

fn a_pool_leaves_a_server_that_goes_away(setup: Setup) {
    let (server, gate, begins) = gated(setup);
    let pollers = setup.pollers(1);
    let entered = pollers.enter();
    let dialer = Dialer::new().pollers(pollers.clone());
    let pool = Pool::new(dialer, server.local_addr().to_string(), Plain);
    let call = |byte| block_on(pool.call(&mut LinkBuffer::from(vec![byte])));
    thread::scope(|scope| {
        let waits = scope.spawn(|| call(1));
        let known = block_on(pool.client()).expect("it is dialed");
        begins.recv_timeout(PATIENCE).expect("it is called");
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        eventually("it is told", || !known.is_active());
        // The next goes to a server that is there; nobody is, by now.
        let error = call(2).expect_err("nobody listens");
        assert!(!error.to_string().contains("has not begun"), "{error}");
        gate.close();
        assert_eq!(waits.join().expect("no panic").expect("a reply"), [1]);
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
    drop(entered);
}

fn a_ping_does_not_end_a_server_that_goes_away(setup: Setup) {
    let (server, gate, begins) = gated(setup);
    let pollers = setup.pollers(1);
    let entered = pollers.enter();
    let options = Client::<Plain>::options().ping(Duration::from_millis(800));
    let client = options.start(dial(&pollers, &server), Plain).expect("a client");
    drop(entered);
    thread::scope(|scope| {
        let waits = scope.spawn(|| ask(&client, b"x"));
        begins.recv_timeout(PATIENCE).expect("it is called");
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        eventually("the client knows", || !client.is_active());
        // It is asked, and answers, several times.
        let asked = server.stats().received_bytes + 3 * Plain::HEADER_BYTES as u64;
        eventually("it is asked", || server.stats().received_bytes >= asked);
        gate.close();
        assert_eq!(waits.join().expect("no panic").expect("a reply"), b"x");
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
}

/// Numbers of one byte: 2 of length, 1 of what it is, 1 of the number.
#[derive(Clone)]
struct Narrow;

impl Protocol for Narrow {
    const HEADER_BYTES: usize = 4;
    const NUMBER_BITS: u32 = 8;

    fn read(&self, header: &[u8]) -> io::Result<Head> {
        let mut plain = [0; Plain::HEADER_BYTES];
        (plain[2], plain[3], plain[4], plain[12]) = (header[0], header[1], header[2], header[3]);
        Plain.read(&plain)
    }

    fn write(&self, head: Head, header: &mut [u8]) -> io::Result<()> {
        let mut plain = [0; Plain::HEADER_BYTES];
        Plain.write(head, &mut plain)?;
        assert_eq!((plain[0], plain[1], &plain[5..12]), (0, 0, &[0; 7][..]), "it fits");
        header.copy_from_slice(&[plain[2], plain[3], plain[4], plain[12]]);
        Ok(())
    }
}

fn numbers_may_be_few(setup: Setup) {
    let gate = TaskGroup::new();
    let opens = gate.clone();
    let server = server(setup, Narrow, CALLS_MAX, async move |request: Slice| {
        if request[0] == 0 {
            opens.closing().await;
        }
        Ok(LinkBuffer::from(request))
    });
    let (_pollers, client) = client(setup, &server, Narrow);
    // One keeps its number, while all others are used again.
    let mut first = LinkBuffer::from(vec![0]);
    let mut slow = pin!(client.call(&mut first));
    assert!(poll_once(slow.as_mut()).is_pending());
    for call in 0..1000_u32 {
        let request = [1 + (call % 250) as u8];
        assert_eq!(ask(&client, &request).expect("a reply"), request);
    }
    // Half of them at once, which leaves some for pings; others wait.
    thread::scope(|scope| {
        let calls: Vec<_> = (0..255).map(|_| scope.spawn(|| ask(&client, &[0]))).collect();
        eventually("half of them have begun", || client.calls() == 128);
        block_on(client.ping()).expect("an answer");
        gate.close();
        for call in calls {
            assert_eq!(call.join().expect("no panic").expect("a reply"), [0]);
        }
    });
    assert_eq!(block_on(slow).expect("a reply"), [0]);
}

fn a_client_makes_no_more_calls_than_it_may(setup: Setup) {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen, counts) = (most.clone(), now.clone());
    let server = server(setup, Plain, CALLS_MAX, async move |request: Slice| {
        seen.fetch_max(1 + counts.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        sleep(Duration::from_millis(1)).await;
        counts.fetch_sub(1, Ordering::Relaxed);
        Ok(LinkBuffer::from(request))
    });
    let pollers = setup.pollers(1);
    let entered = pollers.enter();
    let options = Client::<Plain>::options().calls_max(3);
    let client = options.start(dial(&pollers, &server), Plain).expect("a client");
    drop(entered);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..20).map(|_| scope.spawn(|| ask(&client, b"x"))).collect();
        for call in calls {
            assert_eq!(call.join().expect("no panic").expect("a reply"), b"x");
        }
    });
    assert!((1..=3).contains(&most.load(Ordering::Relaxed)));
}

fn a_read_timeout_is_not_for_clients_that_wait_for_nothing(setup: Setup) {
    let server =
        server(setup, Plain, CALLS_MAX, async |request: Slice| Ok(LinkBuffer::from(request)));
    let (pollers, client) = client(setup, &server, Plain);
    client.control().set_read_timeout(Some(Duration::from_millis(5)));
    // Long after it would have been over.
    block_on(pollers.spawn(|| sleep(Duration::from_millis(50)))).expect("no panic");
    assert_eq!(ask(&client, b"x").expect("a reply"), b"x");
}

fn a_request_that_was_not_sent_comes_back(setup: Setup) {
    let server =
        server(setup, Plain, CALLS_MAX, async |request: Slice| Ok(LinkBuffer::from(request)));
    let (_pollers, client) = client(setup, &server, Plain);
    client.control().abort();
    let mut request = LinkBuffer::from(b"not sent".to_vec());
    block_on(client.call(&mut request)).expect_err("it has ended");
    assert_eq!(request.next(8).expect("all of it"), b"not sent");
}

/// Replies that nobody has asked for, one after the other.
fn a_flood_of_replies_leaves_time_for_others(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        let flood = message(Kind::Reply, 77, b"").repeat(1000);
        loop {
            connection.write(&flood)?;
            connection.flush().await?;
        }
    });
    // The connection is on one poller, and what receives on another.
    let (moves, receives) = (setup.pollers(1), setup.pollers(1));
    let entered = receives.enter();
    let mut connection = dial(&moves, &server);
    connection.write(b"x").expect("staged");
    block_on(connection.flush()).expect("flushed");
    let client = Client::new(connection, Plain).expect("a client");
    drop(entered);
    let ticks = receives.spawn(|| async {
        for _ in 0..20 {
            sleep(Duration::from_millis(1)).await;
        }
    });
    block_on(ticks).expect("no panic");
    assert!(client.is_active());
    client.control().abort();
}

/// Each calls again as soon as he has a reply.
fn who_waits_for_room_has_his_turn(setup: Setup) {
    let server =
        server(setup, Plain, CALLS_MAX, async |request: Slice| Ok(LinkBuffer::from(request)));
    let pollers = setup.pollers(1);
    let entered = pollers.enter();
    let options = Client::<Plain>::options().calls_max(2);
    let client = options.start(dial(&pollers, &server), Plain).expect("a client");
    drop(entered);
    let counts: Arc<Vec<AtomicUsize>> = Arc::new((0..8).map(|_| AtomicUsize::new(0)).collect());
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (client, counts) = (client.clone(), counts.clone());
            pollers.spawn(move || async move {
                while counts.iter().any(|count| count.load(Ordering::Relaxed) < 100) {
                    let request = &mut LinkBuffer::from(b"x".to_vec());
                    assert_eq!(client.call(request).await.expect("a reply"), b"x");
                    counts[task].fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        block_on(task).expect("no panic");
    }
    let counts: Vec<_> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(counts.iter().all(|count| *count <= 110), "{counts:?}");
}

fn who_waits_for_room_is_told_of_the_end(setup: Setup) {
    for goes_away in [true, false] {
        let (server, gate, begins) = gated(setup);
        let pollers = setup.pollers(1);
        let entered = pollers.enter();
        let options = Client::<Plain>::options().calls_max(1);
        let client = options.start(dial(&pollers, &server), Plain).expect("a client");
        drop(entered);
        thread::scope(|scope| {
            let busy = scope.spawn(|| ask(&client, b"x"));
            begins.recv_timeout(PATIENCE).expect("it is called");
            let mut request = LinkBuffer::from(b"y".to_vec());
            let mut waits = pin!(client.call(&mut request));
            assert!(poll_once(waits.as_mut()).is_pending());
            if goes_away {
                let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
                let error = block_on(waits).expect_err("it goes away");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
                gate.close();
                assert_eq!(busy.join().expect("no panic").expect("a reply"), b"x");
                assert_eq!(shutdown.join().expect("no panic"), 0);
                let error = ask(&client, b"z").expect_err("it has gone away");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            } else {
                client.control().abort();
                block_on(waits).expect_err("it has ended");
                busy.join().expect("no panic").expect_err("it has ended");
            }
            assert_eq!(client.calls(), 0);
        });
    }
}

fn a_shutdown_does_not_count_the_read_timeout(setup: Setup) {
    let (begun, begins) = mpsc::channel();
    let builder = setup.builder().read_timeout(Duration::from_millis(20));
    let service = builder.on_connection(async move |connection: Connection| {
        let begun = begun.clone();
        let answer = async move |request: Slice| {
            let _ = begun.send(());
            sleep(Duration::from_millis(80)).await;
            Ok(LinkBuffer::from(request))
        };
        serve(connection, Plain, CALLS_MAX, answer).await
    });
    let server = service.serve(setup.listener()).expect("a server");
    let (_pollers, client) = client(setup, &server, Plain);
    thread::scope(|scope| {
        let waits = scope.spawn(|| ask(&client, b"x"));
        begins.recv_timeout(PATIENCE).expect("it is called");
        assert_eq!(server.shutdown(PATIENCE), 0);
        assert_eq!(waits.join().expect("no panic").expect("a reply"), b"x");
    });
}
