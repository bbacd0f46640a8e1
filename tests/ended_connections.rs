//! Connections that have ended, in one direction or in both: what can still be done with them.

mod support;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Dialer, Limits, LinkBuffer, Pollers};
use pollster::block_on;
use support::settled::Settled;
use support::{Pattern, Peer, Setup, connected, eventually};

on_every_setup!(
    this_side_may_finish_and_go_on_receiving,
    every_call_after_a_close_returns,
    every_call_after_an_abort_returns,
    every_call_after_a_reset_returns,
    every_call_after_both_fins_returns,
    every_call_without_a_poller_returns,
    a_broken_connection_keeps_its_descriptor,
    a_control_keeps_no_connection_open,
    a_control_keeps_no_detached_socket_open,
    an_end_that_comes_with_bytes_is_seen,
    a_closed_server_is_noticed_by_an_idle_client,
    a_peer_of_a_closed_connection_that_somebody_holds_is_told,
    a_flush_keeps_its_deadline_while_the_connection_closes,
);

fn this_side_may_finish_and_go_on_receiving(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    connection.push(vec![7; 300_000]);
    let (reader, writer) = connection.split();
    assert!(support::poll_once(std::pin::pin!(writer.flush())).is_ready());
    writer.finish();
    assert_eq!(peer.read_rest().expect("the end"), [7; 300_000]);
    for _ in 0..3 {
        let bytes = &Pattern::new(31).next(100_000)[..100_000];
        peer.write_all(bytes).expect("still open");
        assert_eq!(block_on(reader.next(bytes.len())).expect("received"), *bytes);
    }
    drop(peer);
    assert!(!block_on(reader.more()).expect("the end"));
    drop(connection);
    eventually("it is over", || pollers.settled().closed == 1);
    assert_eq!(pollers.settled().close_timeouts, 0);
}

/// Calls everything there is. Nothing arrives any more; `reads` and `writes` say whether that is an error.
fn call_everything(mut connection: Connection, reads_fail: bool, writes_fail: bool) {
    let read = |result: io::Result<bool>| match result {
        Ok(more) => assert!(!more && !reads_fail, "read from a connection that is over"),
        Err(error) => assert!(reads_fail, "{error}"),
    };
    let must_fail = |result: io::Result<()>| assert!(result.is_err());
    block_on(async {
        read(connection.more().await);
        read(connection.read(&mut [0; 10]).await.map(|n| n > 0));
        must_fail(connection.next(1).await.map(drop));
        must_fail(connection.peek(1).await.map(drop));
        must_fail(connection.skip(1).await);
        must_fail(connection.fill(1).await);
        must_fail(connection.until(b'\n', 10).await.map(drop));
        must_fail(connection.read_u8().await.map(drop));
        must_fail(connection.read_u32().await.map(drop));
        must_fail(connection.reader_mut().split_to(1).await.map(drop));
        assert_eq!(connection.next(0).await.expect("nothing is always there"), b"");
        assert!(connection.input_mut().is_empty());

        connection.write(b"x").expect("staged");
        connection.push("y");
        connection.append(&mut LinkBuffer::from(&b"z"[..]));
        connection.writer_mut().reserve(10).expect("room");
        assert_eq!(connection.writer_mut().staged_len(), 3);
        for flushed in [connection.flush().await, connection.drain().await] {
            assert_eq!(flushed.is_err(), writes_fail, "{flushed:?}");
        }
        connection.finish();
        connection.finish();
        assert_eq!(connection.writer_mut().staged_len(), 0);
    });
    let control = connection.control();
    let soon = Duration::from_millis(1);
    control.set_read_timeout(Some(soon));
    control.set_write_timeout(Some(soon));
    control.set_idle_timeout(Some(soon));
    control.set_read_deadline(Some(Instant::now()));
    control.set_write_deadline(Some(Instant::now()));
    control.pause();
    control.resume();
    control.close();
    control.abort();
    assert!(!control.is_active());
    let (tell, is_told) = std::sync::mpsc::channel();
    control.on_close(move || tell.send(()).expect("the test waits"));
    assert!(is_told.try_recv().is_ok(), "it was over already");
    let _ = (connection.peer_addr(), connection.local_addr(), format!("{connection:?}"));
    assert!(block_on(connection.detach()).is_err());
}

fn every_call_after_a_close_returns(setup: Setup) {
    let (_pollers, mut connection, _peer) = connected(setup, Limits::default());
    connection.close();
    call_everything(connection, true, true);
}

fn every_call_after_an_abort_returns(setup: Setup) {
    let (_pollers, mut connection, _peer) = connected(setup, Limits::default());
    connection.abort();
    let error = block_on(connection.fill(1)).expect_err("aborted");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    call_everything(connection, true, true);
}

fn every_call_after_a_reset_returns(setup: Setup) {
    let (_pollers, mut connection, peer) = connected(setup, Limits::default());
    // A Unix socket resets if it is closed with bytes unread, and never else.
    connection.write(b"x").expect("staged");
    block_on(connection.drain()).expect("sent");
    peer.reset();
    let error = block_on(connection.fill(1)).expect_err("a reset");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}");
    call_everything(connection, true, true);
}

fn every_call_after_both_fins_returns(setup: Setup) {
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    connection.finish();
    assert_eq!(peer.read_rest().expect("the end"), b"");
    drop(peer);
    assert!(!block_on(connection.more()).expect("the end"));
    call_everything(connection, false, true);
}

fn every_call_without_a_poller_returns(setup: Setup) {
    let (pollers, connection, _peer) = connected(setup, Limits::default());
    pollers.stop();
    call_everything(connection, true, true);
}

/// What a descriptor of this process is.
fn descriptor(number: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{number}")).ok()
}

/// The descriptor of a connection, and what it is.
fn descriptor_of(connection: &Connection) -> (i32, PathBuf) {
    let number = connection.as_fd().as_raw_fd();
    (number, descriptor(number).expect("an open descriptor"))
}

fn a_broken_connection_keeps_its_descriptor(setup: Setup) {
    let (_pollers, mut connection, peer) = connected(setup, Limits::default());
    let (number, socket) = descriptor_of(&connection);
    peer.reset();
    eventually("it is noticed", || !connection.is_active());
    connection.close();
    // Whatever is opened now must not get the number: somebody may still mean this connection by it.
    let files: Vec<_> = (0..10).map(|_| fs::File::open("/dev/null").expect("a file")).collect();
    assert!(files.iter().all(|file| file.as_raw_fd() != number));
    assert_eq!(descriptor(number), Some(socket));
}

fn over(pollers: &Pollers) {
    eventually("it is over", || {
        let stats = pollers.settled();
        stats.closed == stats.connections
    });
}

fn a_control_keeps_no_connection_open(setup: Setup) {
    let (pollers, connection, mut peer) = connected(setup, Limits::default());
    let (number, socket) = descriptor_of(&connection);
    let control = connection.control();
    drop(connection);
    assert_eq!(peer.read_rest().expect("the end"), b"");
    drop(peer);
    over(&pollers);
    assert_ne!(descriptor(number), Some(socket), "the descriptor is open");
    control.close();
    assert!(!control.is_active());
}

fn a_control_keeps_no_detached_socket_open(setup: Setup) {
    let (_pollers, connection, mut peer) = connected(setup, Limits::default());
    let control = connection.control();
    let (socket, _) = block_on(connection.detach()).expect("detached");
    drop(socket);
    peer.set_timeout(Duration::from_secs(5));
    assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
    assert!(!control.is_active());
}

/// Bytes and an end behind them, mostly before the server has begun to receive.
fn an_end_that_comes_with_bytes_is_seen(setup: Setup) {
    const THREADS: usize = 8;
    const CONNECTIONS: usize = 300;
    let server = setup.serve_echo();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for index in 0..CONNECTIONS {
                    let mut peer = Peer::connect(server.local_addr());
                    peer.write_all(&[7; 3000][..1 + index * 37 % 3000]).expect("sent");
                    match index % 3 {
                        0 => peer.reset(),
                        1 => drop(peer),
                        _ => {
                            peer.shutdown(Shutdown::Write);
                            peer.read_rest().expect("the end");
                        }
                    }
                }
            });
        }
    });
    eventually("every end is seen", || {
        let stats = server.settled();
        stats.accepts + stats.accept_aborts == (THREADS * CONNECTIONS) as u64
            && stats.closed == stats.connections
    });
}

fn a_closed_server_is_noticed_by_an_idle_client(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        let byte = connection.next(1).await?;
        connection.push(byte);
        connection.flush().await?;
        connection.close();
        Ok(())
    });
    let pollers = setup.pollers(1);
    let dialer = Dialer::new().pollers(pollers.clone());
    let dialed = block_on(dialer.dial_addr(server.local_addr().clone()));
    let mut connection = dialed.expect("connected");
    connection.write(b"x").expect("staged");
    block_on(connection.flush()).expect("flushed");
    // Nobody reads.
    eventually("it is noticed", || !connection.is_active());
    assert_eq!(block_on(connection.next(1)).expect("it came before"), b"x");
    assert!(!block_on(connection.more()).expect("the end"));
    drop(connection);
    over(&pollers);
    eventually("nothing is left on the other side", || server.settled().closed == 1);
}

/// Whoever sends to it must not wait until it is dropped.
fn a_peer_of_a_closed_connection_that_somebody_holds_is_told(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    connection.close();
    let error = loop {
        if let Err(error) = peer.write_all(&[1; 64 << 10]) {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    eventually("it is over", || pollers.settled().closed == 1);
    drop(connection);
}

fn a_flush_keeps_its_deadline_while_the_connection_closes(setup: Setup) {
    let (_pollers, mut connection, peer) = connected(setup, Limits::default());
    let soon = Duration::from_millis(50);
    connection.push(vec![1; 64 << 20]);
    connection.writer_mut().submit().expect("is open");
    connection.control().close();
    let start = Instant::now();
    connection.set_write_deadline(Some(Instant::now() + soon));
    let error = block_on(connection.drain()).expect_err("the peer takes nothing");
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::TimedOut, None));
    assert!(start.elapsed() >= soon, "early");
    drop(peer);
}
