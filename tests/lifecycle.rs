//! The life of a connection under a server: what is called, in which order, how often, and how it ends.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Control, Server};
use support::settled::Settled;
use support::{PATIENCE, Pattern, Peer, Setup, eventually};

on_every_setup!(
    callbacks_come_in_order_and_once,
    a_refused_connection_is_closed_and_nothing_is_called,
    state_is_kept_with_the_connection,
    a_handler_that_takes_nothing_is_called_again_for_more_only,
    a_handler_that_panics_ends_its_own_connection_only,
    a_handler_that_fails_ends_its_own_connection_only,
    what_a_handler_stages_is_flushed_when_it_returns,
    everything_before_the_fin_is_handled,
    a_half_closed_peer_is_still_answered,
    the_last_reply_survives_unread_requests,
    a_dropped_future_loses_no_byte,
    close_from_elsewhere_wakes_the_reader,
    closing_twice_is_harmless,
    abort_wakes_everybody,
    a_reset_is_reported_with_its_errno,
    writing_after_the_end_is_an_error,
    max_connections_makes_the_rest_wait,
    a_peer_that_closes_too_is_not_waited_for,
    shutdown_lets_a_busy_request_finish,
    shutdown_answers_what_has_arrived,
    shutdown_ends_idle_connections_at_once,
    shutdown_forces_what_does_not_end,
    shutdown_twice_is_harmless,
    a_flooding_connection_does_not_starve_another,
    pipelined_requests_go_out_together,
);

const GRACE: Duration = Duration::from_secs(10);

type Log = Arc<Mutex<Vec<&'static str>>>;

fn note(log: &Log, what: &'static str) {
    log.lock().expect("no panic").push(what);
}

fn noted(log: &Log) -> Vec<&'static str> {
    log.lock().expect("no panic").clone()
}

/// A server whose requests are lines, answered in capitals.
async fn capitals(connection: &mut Connection) -> io::Result<()> {
    let line = connection.until(b'\n', 1 << 20).await?;
    connection.push(line.to_ascii_uppercase());
    connection.flush().await
}

fn callbacks_come_in_order_and_once(setup: Setup) {
    let log = Log::default();
    let logs: Vec<Log> = (0..4).map(|_| log.clone()).collect();
    let [prepare, connect, request, disconnect] = logs.try_into().expect("four");
    let server = setup
        .builder()
        .on_prepare(move |_| {
            note(&prepare, "prepare");
            Ok(())
        })
        .on_connect(async move |connection: &mut Connection| {
            note(&connect, "connect");
            connection.write(b"welcome\n")
        })
        .on_disconnect(async move |_: &mut Connection| note(&disconnect, "disconnect"))
        .on_request(async move |connection: &mut Connection| {
            note(&request, "request");
            capitals(connection).await
        });
    let server = server.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    let mut greeting = [0; 8];
    peer.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(peer.round_trip(b"a\n"), b"A\n");
    assert_eq!(peer.round_trip(b"b\n"), b"B\n");
    peer.shutdown(Shutdown::Write);
    assert_eq!(peer.read_rest().expect("the end"), b"");
    eventually("the connection is over", || server.settled().closed == 1);
    assert_eq!(noted(&log), ["prepare", "connect", "request", "request", "disconnect"]);
}

fn a_refused_connection_is_closed_and_nothing_is_called(setup: Setup) {
    let called = Arc::new(AtomicUsize::new(0));
    let count = called.clone();
    let server = setup
        .builder()
        .on_prepare(|_| Err(ErrorKind::PermissionDenied.into()))
        .on_request(async move |_: &mut Connection| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
    let server = server.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.read_rest().expect("the end"), b"");
    assert_eq!(called.load(Ordering::Relaxed), 0);
}

fn state_is_kept_with_the_connection(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        connection.skip(1).await?;
        let count = match connection.state_mut::<u8>() {
            Some(count) => {
                *count += 1;
                *count
            }
            None => {
                connection.set_state(1u8);
                1
            }
        };
        connection.write(&[count])
    });
    let mut one = Peer::connect(server.local_addr());
    let mut two = Peer::connect(server.local_addr());
    for count in 1..=3 {
        assert_eq!(one.round_trip(b"."), [count]);
    }
    assert_eq!(two.round_trip(b"."), [1], "the other one's state");
}

fn a_handler_that_takes_nothing_is_called_again_for_more_only(setup: Setup) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let server = setup.serve(async move |connection: &mut Connection| {
        count.fetch_add(1, Ordering::Relaxed);
        match connection.input_mut().until(b'\n') {
            Some(line) => {
                connection.push(line);
                connection.flush().await
            }
            None => Ok(()),
        }
    });
    let mut peer = Peer::connect(server.local_addr());
    for byte in b"abc" {
        peer.write_all(&[*byte]).expect("sent");
    }
    assert_eq!(peer.round_trip(b"defg\n")[..3], *b"abc");
    // At most once for each of the bytes that came, never in between.
    let calls = calls.load(Ordering::Relaxed);
    assert!((1..=8).contains(&calls), "{calls} calls for 8 bytes");
}

fn a_handler_that_panics_ends_its_own_connection_only(setup: Setup) {
    let disconnected = Arc::new(AtomicUsize::new(0));
    let count = disconnected.clone();
    let server = setup
        .builder()
        .on_disconnect(async move |_: &mut Connection| {
            count.fetch_add(1, Ordering::Relaxed);
        })
        .on_request(async |connection: &mut Connection| {
            assert_ne!(connection.peek(1).await?[0], b'!', "as the test wants it");
            capitals(connection).await
        });
    let server = server.serve(setup.listener()).expect("a server");
    let mut good = Peer::connect(server.local_addr());
    let mut bad = Peer::connect(server.local_addr());
    assert_eq!(good.round_trip(b"a\n"), b"A\n");
    bad.write_all(b"!").expect("sent");
    let _ = bad.read_rest();
    assert_eq!(good.round_trip(b"b\n"), b"B\n");
    eventually("the panic is counted", || server.settled().handler_panics == 1);
    assert_eq!(disconnected.load(Ordering::Relaxed), 1);
}

fn a_handler_that_fails_ends_its_own_connection_only(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        if connection.peek(1).await?[0] == b'!' {
            return Err(ErrorKind::InvalidData.into());
        }
        capitals(connection).await
    });
    let mut good = Peer::connect(server.local_addr());
    let mut bad = Peer::connect(server.local_addr());
    bad.write_all(b"!").expect("sent");
    let _ = bad.read_rest();
    assert_eq!(good.round_trip(b"b\n"), b"B\n");
    assert_eq!(server.settled().handler_errors, 1);
}

fn what_a_handler_stages_is_flushed_when_it_returns(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        let request = connection.next(1).await?;
        connection.write(b"<")?;
        connection.push(request);
        connection.write(b">")
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    let mut reply = [0; 3];
    peer.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"<x>");
}

fn everything_before_the_fin_is_handled(setup: Setup) {
    let total = Arc::new(AtomicUsize::new(0));
    let sum = total.clone();
    let server = setup.serve(async move |connection: &mut Connection| {
        let chunk = connection.input_mut().next_chunk(usize::MAX);
        sum.fetch_add(chunk.map_or(0, |chunk| chunk.len()), Ordering::Relaxed);
        Ok(())
    });
    const PEERS: usize = 50;
    const BYTES: usize = 50_000;
    thread::scope(|scope| {
        for _ in 0..PEERS {
            scope.spawn(|| {
                let mut peer = Peer::connect(server.local_addr());
                peer.write_all(&Pattern::new(5).next(BYTES)[..BYTES]).expect("sent");
            });
        }
    });
    eventually("every byte is handled", || total.load(Ordering::Relaxed) == PEERS * BYTES);
}

fn a_half_closed_peer_is_still_answered(setup: Setup) {
    let server = setup.serve(capitals);
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"one\ntwo\n").expect("sent");
    peer.shutdown(Shutdown::Write);
    assert_eq!(peer.read_rest().expect("the end"), b"ONE\nTWO\n");
}

fn the_last_reply_survives_unread_requests(setup: Setup) {
    // The server answers the first line and closes, though more is on its way: a close(2) with bytes unread would
    // reset the connection, and destroy the reply.
    let server = setup.serve(async |connection: &mut Connection| {
        let line = connection.until(b'\n', 100).await?;
        connection.push(line);
        connection.drain().await?;
        Err(ErrorKind::Other.into())
    });
    for _ in 0..20 {
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(b"last words\n").expect("sent");
        // The server may have closed already; what is sent then is not the test's affair.
        let _ = peer.write_all(Pattern::new(6).next(100_000));
        peer.shutdown(Shutdown::Write);
        assert_eq!(peer.read_rest().expect("no reset"), b"last words\n");
    }
}

fn a_dropped_future_loses_no_byte(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        // Polled once and dropped, over and over: what arrives meanwhile must all be there.
        loop {
            let polled = {
                let mut future = std::pin::pin!(connection.next(10_000));
                std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
            };
            if let Poll::Ready(message) = polled {
                connection.push(message?);
                return connection.flush().await;
            }
            connection.more().await?;
        }
    });
    let mut peer = Peer::connect(server.local_addr());
    let message = Pattern::new(7).next(10_000).to_vec();
    for piece in message.chunks(777) {
        peer.write_all(piece).expect("sent");
    }
    let mut reply = vec![0; message.len()];
    peer.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply, message);
}

/// A server whose handler waits for bytes that never come, and the handle to do something about it.
fn waiting(setup: Setup) -> (Server, Peer, Control, mpsc::Receiver<io::Error>) {
    let (handles, handle) = mpsc::channel();
    let (errors, error) = mpsc::channel();
    let server = setup.serve(async move |connection: &mut Connection| {
        let _ = handles.send(connection.control());
        let result = connection.next(1 << 20).await;
        let _ = errors.send(result.expect_err("so much never comes"));
        Ok(())
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    let control = handle.recv_timeout(PATIENCE).expect("a handle");
    (server, peer, control, error)
}

fn close_from_elsewhere_wakes_the_reader(setup: Setup) {
    let (_server, mut peer, control, error) = waiting(setup);
    control.close();
    let error = error.recv_timeout(PATIENCE).expect("woken");
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    assert_eq!(peer.read_rest().expect("the end"), b"");
    assert!(!control.is_active());
}

fn closing_twice_is_harmless(setup: Setup) {
    let (server, peer, control, error) = waiting(setup);
    control.close();
    control.close();
    control.abort();
    error.recv_timeout(PATIENCE).expect("woken");
    drop(peer);
    eventually("the connection is over", || server.settled().closed == 1);
    control.close();
    control.abort();
    control.set_idle_timeout(Some(Duration::from_millis(1)));
    assert_eq!(Peer::connect(server.local_addr()).write(b"y").expect("sent"), 1);
}

fn abort_wakes_everybody(setup: Setup) {
    let (_server, mut peer, control, error) = waiting(setup);
    control.abort();
    let error = error.recv_timeout(PATIENCE).expect("woken");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    match peer.read_rest() {
        Ok(rest) => assert_eq!((rest.len(), setup.family), (0, support::Family::Unix)),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}"),
    }
}

fn a_reset_is_reported_with_its_errno(setup: Setup) {
    let (_server, peer, _control, error) = waiting(setup);
    peer.reset();
    let error = error.recv_timeout(PATIENCE).expect("woken");
    match setup.family {
        support::Family::Unix => assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}"),
        _ => assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}"),
    }
}

fn writing_after_the_end_is_an_error(setup: Setup) {
    let (errors, error) = mpsc::channel();
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.skip(1).await?;
        connection.finish();
        connection.write(b"too late")?;
        let result = connection.flush().await;
        let _ = errors.send(result.expect_err("finished"));
        Err(ErrorKind::Other.into())
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    assert_eq!(peer.read_rest().expect("the end"), b"");
    let error = error.recv_timeout(PATIENCE).expect("an error");
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
}

fn max_connections_makes_the_rest_wait(setup: Setup) {
    let server = setup.builder().max_connections(2).on_request(support::echo);
    let server = server.serve(setup.listener()).expect("a server");
    let mut peers: Vec<_> = (0..6).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        peer.write_all(b"x").expect("sent");
    }
    peers.iter().for_each(|peer| peer.set_timeout(Duration::from_millis(1)));
    let mut served = 0;
    while !peers.is_empty() {
        // Whoever is served first; there are never more than two.
        let mut first = None;
        eventually("somebody is served", || {
            first = peers.iter_mut().position(|peer| peer.read_exact(&mut [0]).is_ok());
            first.is_some()
        });
        let _peer = peers.remove(first.expect("found"));
        served += 1;
        let stats = server.settled();
        let open = stats.connections - stats.closed;
        assert!(open <= 2, "{open} connections are open");
    }
    assert_eq!(served, 6);
}

fn a_peer_that_closes_too_is_not_waited_for(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        let line = connection.until(b'\n', 100).await?;
        connection.push(line);
        connection.close();
        Ok(())
    });
    for _ in 0..10 {
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(b"bye\n").expect("sent");
        peer.read_rest().expect("the end");
    }
    eventually("every connection is over", || server.settled().closed == 10);
    assert_eq!(server.settled().close_timeouts, 0);
}

/// A server whose handler holds a request until the test lets it go.
fn holding(setup: Setup) -> (Server, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (arrived, arrivals) = mpsc::channel();
    let (release, released) = futures_channel::oneshot::channel::<()>();
    let released = Mutex::new(Some(released));
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.skip(1).await?;
        let _ = arrived.send(());
        let released = released.lock().expect("no panic").take();
        if let Some(released) = released {
            let _ = released.await;
        }
        connection.write(b"done")
    });
    let (letter, letters) = mpsc::channel();
    thread::spawn(move || {
        if letters.recv().is_ok() {
            let _ = release.send(());
        } else {
            // Kept for ever: the handler never ends.
            std::mem::forget(release);
        }
    });
    (server, arrivals, letter)
}

fn shutdown_lets_a_busy_request_finish(setup: Setup) {
    let (server, arrivals, letter) = holding(setup);
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    arrivals.recv_timeout(PATIENCE).expect("a request");
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(GRACE));
        letter.send(()).expect("a letter");
        assert_eq!(peer.read_rest().expect("the end"), b"done");
        drop(peer);
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
}

fn shutdown_answers_what_has_arrived(setup: Setup) {
    for _ in 0..10 {
        let server = setup.serve(capitals);
        let mut peers: Vec<_> = (0..20).map(|_| Peer::connect(server.local_addr())).collect();
        for peer in &mut peers {
            // Served once, so that each is accepted.
            assert_eq!(peer.round_trip(b"a\n"), b"A\n");
        }
        for peer in &mut peers {
            peer.write_all(b"b\n").expect("sent");
        }
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| server.shutdown(GRACE));
            for mut peer in peers {
                assert_eq!(peer.read_rest().expect("the end"), b"B\n");
            }
            assert_eq!(shutdown.join().expect("no panic"), 0);
        });
    }
}

fn shutdown_ends_idle_connections_at_once(setup: Setup) {
    let server = setup.serve(capitals);
    let mut peers: Vec<_> = (0..20).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"a\n"), b"A\n");
    }
    let start = Instant::now();
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(GRACE));
        for mut peer in peers {
            assert_eq!(peer.read_rest().expect("the end"), b"");
        }
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
    assert!(start.elapsed() < GRACE);
}

fn shutdown_forces_what_does_not_end(setup: Setup) {
    let (server, arrivals, letter) = holding(setup);
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    arrivals.recv_timeout(PATIENCE).expect("a request");
    drop(letter);
    assert_eq!(server.shutdown(Duration::from_millis(50)), 1);
    let _ = peer.read_rest();
}

fn shutdown_twice_is_harmless(setup: Setup) {
    let server = setup.serve(capitals);
    assert_eq!(server.shutdown(GRACE), 0);
    assert_eq!(server.shutdown(GRACE), 0);
}

fn a_flooding_connection_does_not_starve_another(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        if connection.peek(1).await?[0] == b'f' {
            // The flood is taken and dropped.
            connection.input_mut().clear();
            return Ok(());
        }
        capitals(connection).await
    });
    let (over, is_over) = mpsc::channel::<()>();
    let address = server.local_addr();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut flood = Peer::connect(address);
            let piece = [b'f'; 64 << 10];
            while is_over.try_recv() == Err(mpsc::TryRecvError::Empty) {
                flood.write_all(&piece).expect("taken");
            }
        });
        // Dropped if an assertion fails, too.
        let _over = over;
        let mut peer = Peer::connect(server.local_addr());
        for _ in 0..200 {
            assert_eq!(peer.round_trip(b"a\n"), b"A\n");
        }
    });
}

fn pipelined_requests_go_out_together(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        while let Some(line) = connection.input_mut().until(b'\n') {
            connection.push(line.to_ascii_uppercase());
        }
        connection.flush().await
    });
    let mut peer = Peer::connect(server.local_addr());
    let requests = b"ping\n".repeat(1000);
    let replies = peer.round_trip(&requests);
    assert_eq!(replies, b"PING\n".repeat(1000));
    // As many sends as reads brought requests, or as the vectors of one send demand; far from one each.
    let stats = server.settled();
    assert!(stats.sends <= 100, "{} sends for 1000 requests", stats.sends);
}
