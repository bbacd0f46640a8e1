//! The callbacks of a server: when they may talk, when they are called, and that each is called once.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::Connection;
use futures_channel::oneshot;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    the_first_callback_may_converse,
    a_first_callback_that_fails_ends_the_connection,
    the_last_callback_waits_for_the_first,
    every_connection_is_told_of_its_end_once,
    a_slow_last_callback_holds_up_nobody,
    what_was_left_unread_is_there_in_the_last_callback,
    a_handler_that_outlives_the_grace_fails_and_is_told,
    a_handler_that_waits_for_something_else_is_told_of_the_end,
    a_handler_is_never_entered_twice_for_one_connection,
    a_connection_closed_in_the_first_callback_is_over,
);

fn count(counter: &Arc<AtomicUsize>) -> usize {
    counter.load(Ordering::Relaxed)
}

fn the_first_callback_may_converse(setup: Setup) {
    const ROUNDS: usize = 200;
    let service = setup
        .builder()
        .on_connect(async |connection: &mut Connection| {
            for _ in 0..ROUNDS {
                connection.write(b"ping")?;
                connection.flush().await?;
                assert_eq!(connection.next(4).await?, *b"pong");
            }
            Ok(())
        })
        .on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    for _ in 0..ROUNDS {
        let mut ping = [0; 4];
        peer.read_exact(&mut ping).expect("a ping");
        assert_eq!(&ping, b"ping");
        assert_eq!(server.settled().requests, 0);
        peer.write_all(b"pong").expect("sent");
    }
    assert_eq!(peer.round_trip(b"request"), b"request");
    assert_eq!(server.settled().requests, 1);
}

fn a_first_callback_that_fails_ends_the_connection(setup: Setup) {
    let disconnects = Arc::new(AtomicUsize::new(0));
    let counter = disconnects.clone();
    let service = setup
        .builder()
        .on_connect(async |connection: &mut Connection| {
            connection.write(b"no")?;
            connection.flush().await?;
            Err(ErrorKind::PermissionDenied.into())
        })
        .on_disconnect(async move |_: &mut Connection| {
            counter.fetch_add(1, Ordering::Relaxed);
        })
        .on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"request").expect("sent");
    peer.shutdown(Shutdown::Write);
    assert_eq!(peer.read_rest().expect("the end"), b"no");
    eventually("it is over", || server.settled().closed == 1);
    let stats = server.settled();
    assert_eq!((stats.requests, stats.handler_errors, count(&disconnects)), (0, 1, 1));
}

/// Something that a callback waits for, and nothing on the connection wakes.
fn gate() -> (oneshot::Sender<()>, Mutex<Option<oneshot::Receiver<()>>>) {
    let (open, opened) = oneshot::channel();
    (open, Mutex::new(Some(opened)))
}

async fn pass(gate: &Mutex<Option<oneshot::Receiver<()>>>) {
    let opened = gate.lock().expect("no panic").take();
    if let Some(opened) = opened {
        let _ = opened.await;
    }
}

fn the_last_callback_waits_for_the_first(setup: Setup) {
    let (open, gate) = gate();
    let (called, calls) = mpsc::channel();
    let last_called = called.clone();
    let service = setup
        .builder()
        .on_connect(async move |connection: &mut Connection| {
            called.send("connect").expect("the test waits");
            pass(&gate).await;
            connection.set_state("kept");
            called.send("connected").expect("the test waits");
            Ok(())
        })
        .on_disconnect(async move |connection: &mut Connection| {
            assert_eq!(connection.state_mut::<&str>(), Some(&mut "kept"));
            last_called.send("disconnect").expect("the test waits");
        })
        .on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let peer = Peer::connect(server.local_addr());
    assert_eq!(calls.recv_timeout(PATIENCE), Ok("connect"));
    let received = server.settled().receives;
    drop(peer);
    eventually("the end has arrived", || server.settled().receives > received);
    assert!(calls.try_recv().is_err(), "called before the first has returned");
    open.send(()).expect("it waits");
    assert_eq!(calls.recv_timeout(PATIENCE), Ok("connected"));
    assert_eq!(calls.recv_timeout(PATIENCE), Ok("disconnect"));
    eventually("it is over", || server.settled().closed == 1);
    assert!(calls.try_recv().is_err());
}

fn every_connection_is_told_of_its_end_once(setup: Setup) {
    const PEERS: usize = 100;
    let (requests, disconnects) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (request, disconnect) = (requests.clone(), disconnects.clone());
    let service = setup
        .builder()
        .on_disconnect(async move |_: &mut Connection| {
            disconnect.fetch_add(1, Ordering::Relaxed);
        })
        .on_request(async move |connection: &mut Connection| {
            request.fetch_add(1, Ordering::Relaxed);
            // More than ever comes.
            connection.next(2).await.map(drop)
        });
    let server = service.serve(setup.listener()).expect("a server");
    let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        peer.write_all(b"x").expect("sent");
    }
    eventually("every handler waits", || count(&requests) == PEERS);
    for (index, peer) in peers.into_iter().enumerate() {
        match index % 2 {
            0 => drop(peer),
            _ => peer.reset(),
        }
    }
    eventually("all are over", || server.settled().closed == PEERS as u64);
    assert_eq!((count(&requests), count(&disconnects)), (PEERS, PEERS));
    assert_eq!(server.settled().handler_errors, PEERS as u64);
}

fn a_slow_last_callback_holds_up_nobody(setup: Setup) {
    const PEERS: usize = 50;
    let (entered, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (enter, leave) = (entered.clone(), left.clone());
    let gates: Vec<_> = (0..PEERS).map(|_| gate()).collect();
    let (open, gates): (Vec<_>, Vec<_>) = gates.into_iter().unzip();
    let service = setup
        .builder()
        .on_disconnect(async move |_: &mut Connection| {
            if let Some(gate) = gates.get(enter.fetch_add(1, Ordering::Relaxed)) {
                pass(gate).await;
            }
            leave.fetch_add(1, Ordering::Relaxed);
        })
        .on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"x"), b"x");
    }
    drop(peers);
    eventually("all have ended", || count(&entered) == PEERS);
    // They are all at it, and others are served.
    let mut other = Peer::connect(server.local_addr());
    assert_eq!(other.round_trip(b"served"), b"served");
    assert_eq!((count(&left), server.settled().closed), (0, 0));
    drop(open);
    eventually("all are over", || server.settled().closed == PEERS as u64);
    assert_eq!(count(&left), PEERS);
}

fn what_was_left_unread_is_there_in_the_last_callback(setup: Setup) {
    let (tell, told) = mpsc::channel();
    let service = setup
        .builder()
        .on_disconnect(async move |connection: &mut Connection| {
            let rest = connection.input_mut().len();
            let _ = tell.send(connection.next(rest).await.expect("handed over").to_vec());
        })
        .on_request(async |connection: &mut Connection| connection.skip(2).await);
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    // The handler takes pairs; the odd byte is left.
    peer.write_all(b"aabbc").expect("sent");
    peer.shutdown(Shutdown::Write);
    let _ = peer.read_rest();
    assert_eq!(told.recv_timeout(PATIENCE).expect("told"), b"c");
}

fn a_handler_that_outlives_the_grace_fails_and_is_told(setup: Setup) {
    let (entered, enters) = mpsc::channel();
    let disconnects = Arc::new(AtomicUsize::new(0));
    let counter = disconnects.clone();
    let service = setup
        .builder()
        .on_disconnect(async move |_: &mut Connection| {
            counter.fetch_add(1, Ordering::Relaxed);
        })
        .on_request(async move |connection: &mut Connection| {
            entered.send(()).expect("the test waits");
            connection.next(1 << 20).await.map(drop)
        });
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    enters.recv_timeout(PATIENCE).expect("a request");
    let start = Instant::now();
    assert_eq!(server.shutdown(Duration::from_millis(20)), 1);
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    assert_eq!((count(&disconnects), server.settled().handler_errors), (1, 1));
    let ended: io::Result<Vec<u8>> = peer.read_rest();
    assert_eq!(ended.unwrap_or_default(), b"");
}

fn a_handler_that_waits_for_something_else_is_told_of_the_end(setup: Setup) {
    const PEERS: usize = 100;
    let (waits, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (waiting, told) = (waits.clone(), gone.clone());
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.skip(1).await?;
        let (open, opened) = oneshot::channel();
        connection.on_close(move || {
            let _ = open.send(());
        });
        waiting.fetch_add(1, Ordering::Relaxed);
        let _ = opened.await;
        told.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        peer.write_all(b"x").expect("sent");
    }
    eventually("every handler waits", || count(&waits) == PEERS);
    assert_eq!(count(&gone), 0);
    for (index, peer) in peers.into_iter().enumerate() {
        match index % 2 {
            0 => drop(peer),
            _ => peer.reset(),
        }
    }
    eventually("all are told", || count(&gone) == PEERS);
    eventually("all are over", || server.settled().closed == PEERS as u64);
}

/// Though more arrives while it waits, on the poller as on other threads.
fn a_handler_is_never_entered_twice_for_one_connection(setup: Setup) {
    const PEERS: usize = 8;
    const BYTES: usize = 300;
    let twice = Arc::new(AtomicUsize::new(0));
    let found = twice.clone();
    let here = setup.builder().on_request(async move |connection: &mut Connection| {
        let entered = connection.state_mut::<Arc<AtomicUsize>>().cloned().unwrap_or_default();
        connection.set_state(entered.clone());
        found.fetch_add(entered.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let bytes = connection.next(2).await?;
        connection.push(bytes);
        connection.drain().await?;
        entered.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    });
    let found = twice.clone();
    let elsewhere = setup.builder().on_request_blocking(
        |job| drop(thread::spawn(job)),
        move |blocking| {
            let connection = blocking.connection_mut();
            let entered = connection.state_mut::<Arc<AtomicUsize>>().cloned().unwrap_or_default();
            connection.set_state(entered.clone());
            found.fetch_add(entered.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            let mut bytes = [0; 2];
            blocking.read_exact(&mut bytes)?;
            blocking.write_all(&bytes)?;
            entered.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        },
    );
    for service in [here, elsewhere] {
        let server = service.serve(setup.listener()).expect("a server");
        thread::scope(|scope| {
            for _ in 0..PEERS {
                scope.spawn(|| {
                    let mut peer = Peer::connect(server.local_addr());
                    for _ in 0..BYTES {
                        peer.write_all(b"x").expect("sent");
                    }
                    peer.read_exact(&mut [0; BYTES]).expect("replies");
                });
            }
        });
    }
    assert_eq!(count(&twice), 0);
}

fn a_connection_closed_in_the_first_callback_is_over(setup: Setup) {
    let disconnects = Arc::new(AtomicUsize::new(0));
    let counter = disconnects.clone();
    let service = setup
        .builder()
        .on_connect(async |connection: &mut Connection| {
            connection.write(b"bye")?;
            connection.flush().await?;
            connection.close();
            Ok(())
        })
        .on_disconnect(async move |_: &mut Connection| {
            counter.fetch_add(1, Ordering::Relaxed);
        })
        .on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.read_rest().expect("the end"), b"bye");
    drop(peer);
    eventually("it is over", || server.settled().closed == 1);
    assert_eq!((server.settled().requests, count(&disconnects)), (0, 1));
}
