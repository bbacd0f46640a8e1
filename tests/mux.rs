//! Many calls at once on one connection: each has its own reply, in any order, or is told why not.

mod support;

use std::io::{ErrorKind, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use duopoll::mux::{CALLS_MAX, Client, Head, Kind, Plain, Pool, Protocol, serve};
use duopoll::task::TaskGroup;
use duopoll::time::{sleep, timeout};
use duopoll::{Connection, Dialer, LinkBuffer, Listener, Pollers, Server, Slice};
use pollster::block_on;
use support::{PATIENCE, Peer, Setup, eventually, poll_once, scaled};

on_every_setup!(
    each_call_has_its_own_reply,
    a_call_that_is_given_up_disturbs_nobody,
    failures_and_panics_are_told,
    as_many_calls_as_are_allowed,
    a_shutdown_answers_what_is_under_way,
    an_end_is_told_to_every_call,
    what_is_no_protocol_ends_the_connection,
    a_ping_is_answered_beside_calls,
    a_pool_dials_again,
    a_pool_waits_before_it_dials_again,
    a_pool_ends_what_does_not_answer,
);

/// A server with that handler.
fn server<H>(setup: Setup, calls_max: usize, handler: H) -> Server
where
    H: AsyncFn(Slice) -> std::io::Result<LinkBuffer> + Clone + Send + Sync + 'static,
{
    serve_at(setup, setup.listener(), calls_max, handler)
}

fn serve_at<H>(setup: Setup, listener: Listener, calls_max: usize, handler: H) -> Server
where
    H: AsyncFn(Slice) -> std::io::Result<LinkBuffer> + Clone + Send + Sync + 'static,
{
    let service = setup.builder().on_connection(async move |connection: Connection| {
        serve(connection, Plain, calls_max, handler.clone()).await
    });
    service.serve(listener).expect("a server")
}

fn echoing(setup: Setup) -> Server {
    server(setup, CALLS_MAX, async |request: Slice| Ok(LinkBuffer::from(request)))
}

fn dialer(pollers: &Pollers) -> Dialer {
    Dialer::new().pollers(pollers.clone())
}

/// A client on pollers of its own, which its thread has entered.
fn client(setup: Setup, server: &Server) -> (Pollers, Client<Plain>) {
    let pollers = setup.pollers(1);
    let dialed = block_on(dialer(&pollers).dial_addr(server.local_addr().clone()));
    let entered = pollers.enter();
    let client = Client::new(dialed.expect("dialed"), Plain).expect("a client");
    drop(entered);
    (pollers, client)
}

fn ask(client: &Client<Plain>, request: impl Into<Vec<u8>>) -> std::io::Result<Slice> {
    block_on(client.call(&mut LinkBuffer::from(request.into())))
}

fn each_call_has_its_own_reply(setup: Setup) {
    // Odd ones take a while, so replies overtake each other.
    let server = server(setup, CALLS_MAX, async |request: Slice| {
        if request[7] % 2 == 1 {
            sleep(Duration::from_millis(u64::from(request[7] % 5))).await;
        }
        Ok(LinkBuffer::from(request))
    });
    let (_pollers, client) = client(setup, &server);
    let others = setup.pollers(4);
    let each = scaled(100) as u64;
    let tasks: Vec<_> = (0..64_u64)
        .map(|task| {
            let client = client.clone();
            others.spawn(move || async move {
                for call in 0..each {
                    let body = [(task << 32 | call).to_be_bytes(), [7; 8]].concat();
                    let reply = client.call(&mut LinkBuffer::from(body.clone())).await;
                    assert_eq!(reply.expect("a reply"), body[..]);
                }
            })
        })
        .collect();
    for task in tasks {
        block_on(task).expect("no panic");
    }
    assert_eq!(client.calls(), 0);
    // Of any size.
    for size in [0, 1, 4 << 10, 1 << 20] {
        let body = vec![9; size.max(8)];
        assert_eq!(ask(&client, body.clone()).expect("a reply"), body[..]);
    }
    assert_eq!(server.shutdown(PATIENCE), 0);
}

fn a_call_that_is_given_up_disturbs_nobody(setup: Setup) {
    let gate = TaskGroup::new();
    let opens = gate.clone();
    let server = server(setup, CALLS_MAX, async move |request: Slice| {
        if request[0] == 200 {
            opens.closing().await;
        }
        Ok(LinkBuffer::from(request))
    });
    let (_pollers, client) = client(setup, &server);
    for _ in 0..20 {
        let mut request = LinkBuffer::from(vec![200]);
        let late = block_on(timeout(Duration::from_millis(2), client.call(&mut request)));
        assert!(late.is_err());
        assert_eq!(ask(&client, [0, 1]).expect("a reply"), [0, 1]);
    }
    // The server is busy with them until it has answered.
    assert_eq!(client.calls(), 20);
    let mut never = LinkBuffer::from(vec![200]);
    assert!(poll_once(pin!(client.call(&mut never))).is_pending());
    // The late replies come, and are nobody's.
    gate.close();
    eventually("they are answered", || client.calls() == 0);
    assert_eq!(ask(&client, [0, 2]).expect("a reply"), [0, 2]);
    assert!(client.is_active());
}

fn failures_and_panics_are_told(setup: Setup) {
    let server = server(setup, CALLS_MAX, async |request: Slice| match request[0] {
        b'e' => Err(std::io::Error::other("no such thing")),
        b'p' => panic!("on purpose"),
        _ => Ok(LinkBuffer::from(request)),
    });
    let (_pollers, client) = client(setup, &server);
    for _ in 0..3 {
        let error = ask(&client, *b"e").expect_err("a failure");
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Other, "no such thing".into()));
        let error = ask(&client, *b"p").expect_err("a failure");
        assert_eq!(error.to_string(), "the handler has panicked");
        assert_eq!(ask(&client, *b"fine").expect("a reply"), b"fine");
    }
    eventually("panics are counted", || server.stats().handler_panics == 3);
}

fn as_many_calls_as_are_allowed(setup: Setup) {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (run, peak) = (running.clone(), most.clone());
    let server = server(setup, 4, async move |request: Slice| {
        peak.fetch_max(run.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        sleep(Duration::from_millis(1)).await;
        run.fetch_sub(1, Ordering::SeqCst);
        Ok(LinkBuffer::from(request))
    });
    let (_pollers, client) = client(setup, &server);
    let others = setup.pollers(2);
    let calls: Vec<_> = (0..100_u8)
        .map(|call| {
            let client = client.clone();
            others.spawn(move || async move {
                let reply = client.call(&mut LinkBuffer::from(vec![call])).await;
                assert_eq!(reply.expect("a reply"), [call]);
            })
        })
        .collect();
    for call in calls {
        block_on(call).expect("no panic");
    }
    assert_eq!((most.load(Ordering::SeqCst), running.load(Ordering::SeqCst)), (4, 0));
}

fn a_shutdown_answers_what_is_under_way(setup: Setup) {
    let (begun, begins) = mpsc::channel();
    // Used as a gate.
    let gate = TaskGroup::new();
    let opened = gate.clone();
    let server = server(setup, CALLS_MAX, async move |request: Slice| {
        begun.send(()).expect("the test waits");
        opened.closing().await;
        Ok(LinkBuffer::from(request))
    });
    let (_pollers, client) = client(setup, &server);
    let calls: Vec<_> = (0..10_u8)
        .map(|call| {
            let client = client.clone();
            thread::spawn(move || ask(&client, [call]).expect("a reply"))
        })
        .collect();
    for _ in 0..10 {
        begins.recv_timeout(PATIENCE).expect("it is called");
    }
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        eventually("it begins", || !listens(&server));
        gate.close();
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
    for (call, reply) in calls.into_iter().enumerate() {
        assert_eq!(reply.join().expect("no panic"), [call as u8]);
    }
    eventually("the client knows", || !client.is_active());
    let error = ask(&client, *b"late").expect_err("the server has ended");
    let known = [ErrorKind::ConnectionRefused, ErrorKind::NotConnected];
    assert!(known.contains(&error.kind()), "{error:?}");
}

/// Whether somebody listens at its address.
fn listens(server: &Server) -> bool {
    support::peers::try_connect(server.local_addr()).is_ok()
}

fn an_end_is_told_to_every_call(setup: Setup) {
    for how in 0..3 {
        let server = server(setup, CALLS_MAX, async |_: Slice| std::future::pending().await);
        let (pollers, client) = client(setup, &server);
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || ask(&client, *b"x").expect_err("there is no reply"))
            })
            .collect();
        eventually("all wait", || client.calls() == 20);
        match how {
            0 => drop(server),
            1 => client.control().abort(),
            _ => pollers.stop(),
        }
        for call in calls {
            let error = call.join().expect("no panic");
            let known = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
            let known = known.contains(&error.kind()) || error.kind() == ErrorKind::NotConnected;
            assert!(known, "{error:?}");
        }
        assert_eq!((client.calls(), client.is_active()), (0, false));
    }
}

fn what_is_no_protocol_ends_the_connection(setup: Setup) {
    // To a server.
    let server = echoing(setup);
    let mut peer = Peer::connect(server.local_addr());
    let _ = peer.write_all(&[0xff; 100]);
    let _ = peer.read_rest();
    eventually("it is an error", || server.server_stats().handler_errors == 1);
    // From a server: a kind that does not exist, and a request.
    for junk in [7, Kind::Request as u8] {
        let junk_server = setup.serve(async move |connection: &mut Connection| {
            let head = connection.next(Plain::HEADER_BYTES).await?;
            let Head { number, body_bytes, .. } = Plain.read(&head)?;
            connection.skip(body_bytes).await?;
            let mut header = [0; Plain::HEADER_BYTES];
            let reply = Head { kind: Kind::Reply, number, body_bytes: 0 };
            Plain.write(reply, &mut header)?;
            header[4] = junk;
            connection.write(&header)
        });
        let (_pollers, client) = client(setup, &junk_server);
        let error = ask(&client, *b"x").expect_err("that is no reply");
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        assert!(!client.is_active());
    }
    // A reply to nobody is dropped.
    let strange = setup.serve(async |connection: &mut Connection| {
        let head = connection.next(Plain::HEADER_BYTES).await?;
        let Head { number, body_bytes, .. } = Plain.read(&head)?;
        connection.skip(body_bytes).await?;
        for number in [u64::MAX, number + 1, number] {
            let mut header = [0; Plain::HEADER_BYTES];
            Plain.write(Head { kind: Kind::Reply, number, body_bytes: 0 }, &mut header)?;
            connection.write(&header)?;
        }
        Ok(())
    });
    let (_pollers, client) = client(setup, &strange);
    assert_eq!(ask(&client, *b"x").expect("a reply"), b"");
}

fn a_ping_is_answered_beside_calls(setup: Setup) {
    let server = server(setup, CALLS_MAX, async |_: Slice| std::future::pending().await);
    let (_pollers, client) = client(setup, &server);
    let mut request = LinkBuffer::from(vec![7]);
    let mut call = pin!(client.call(&mut request));
    assert!(poll_once(call.as_mut()).is_pending());
    for _ in 0..10 {
        block_on(client.ping()).expect("it is there");
    }
    assert!(poll_once(call.as_mut()).is_pending());
}

fn a_pool_dials_again(setup: Setup) {
    let first = echoing(setup);
    let address = first.local_addr().clone();
    let pollers = setup.pollers(1);
    let _entered = pollers.enter();
    let pool = Pool::new(dialer(&pollers), address.to_string(), Plain)
        .connections(3)
        .backoff(Duration::from_millis(1), Duration::from_millis(10));
    let call = || block_on(pool.call(&mut LinkBuffer::from(b"x".to_vec())));
    for _ in 0..30 {
        assert_eq!(call().expect("a reply"), b"x");
    }
    assert_eq!(first.server_stats().accepts, 3);
    drop(first);
    let error = call().expect_err("nobody is there");
    assert!(error.raw_os_error().is_some() || error.get_ref().is_some(), "{error:?}");
    let listener = Listener::bind(&address).expect("the address is free");
    let again =
        serve_at(setup, listener, CALLS_MAX, async |request: Slice| Ok(LinkBuffer::from(request)));
    eventually("it is dialed again", || call().is_ok());
    eventually("all are", || call().is_ok() && again.server_stats().accepts == 3);
}

fn a_pool_waits_before_it_dials_again(setup: Setup) {
    let listener = setup.listener();
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let pollers = setup.pollers(1);
    let _entered = pollers.enter();
    let pool = Pool::new(dialer(&pollers), address.to_string(), Plain)
        .backoff(PATIENCE * 10, PATIENCE * 10);
    let call = || block_on(pool.call(&mut LinkBuffer::from(b"x".to_vec())));
    let refused = call().expect_err("nobody listens");
    let listener = Listener::bind(&address).expect("the address is free");
    let server =
        serve_at(setup, listener, CALLS_MAX, async |request: Slice| Ok(LinkBuffer::from(request)));
    // Somebody does now, but it is too early to find out.
    let error = call().expect_err("it is too early");
    assert_eq!((error.kind(), error.to_string()), (refused.kind(), refused.to_string()));
    assert_eq!(server.server_stats().accepts, 0);
}

/// It accepts, and says nothing.
fn a_pool_ends_what_does_not_answer(setup: Setup) {
    let silent = setup.serve(async |connection: &mut Connection| {
        let mut sink = Vec::new();
        sink.extend_from_slice(&connection.next(1).await?);
        std::future::pending().await
    });
    let pollers = setup.pollers(1);
    let _entered = pollers.enter();
    let pool = Pool::new(dialer(&pollers), silent.local_addr().to_string(), Plain)
        .ping(Duration::from_millis(20));
    let error = block_on(pool.call(&mut LinkBuffer::from(b"x".to_vec()))).expect_err("no reply");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    // One that answers stays. Machines may be slow to: this waits for two pings, not for time.
    let good = echoing(setup);
    let pool = Pool::new(dialer(&pollers), good.local_addr().to_string(), Plain)
        .ping(Duration::from_millis(800));
    let call = || block_on(pool.call(&mut LinkBuffer::from(b"x".to_vec())));
    assert_eq!(call().expect("a reply"), b"x");
    let sent = good.stats().received_bytes;
    eventually("it is asked", || good.stats().received_bytes > sent);
    let asked = good.stats().received_bytes;
    eventually("again", || good.stats().received_bytes > asked);
    assert_eq!(call().expect("a reply"), b"x");
    assert_eq!(good.server_stats().accepts, 1);
    drop(pool);
    eventually("the connection goes with the pool", || good.open_connections() == 0);
}
