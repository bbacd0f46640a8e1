//! Code that closes descriptors which are not its own, so that their numbers come to mean other files.
//!
//! A test binary of its own: what takes the numbers would outlive an exec.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Engine};
use support::peers::try_connect;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    a_connection_whose_descriptor_is_replaced_ends_with_an_error,
    an_idle_connection_whose_descriptor_is_replaced_does_not_hold_up_a_shutdown,
    a_listener_whose_descriptor_is_replaced_harms_nobody,
);

/// What somebody else does who closes a descriptor that is not his, before another file gets its number.
fn replace(descriptor: RawFd) {
    let other = File::open("/dev/null").expect("a file");
    // SAFETY: takes no memory. The number stays taken, so that whoever owns it closes a file of this test.
    assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), descriptor) }, descriptor);
}

fn a_connection_whose_descriptor_is_replaced_ends_with_an_error(setup: Setup) {
    let (said, error) = mpsc::channel();
    let said = Mutex::new(said);
    let server = setup.serve(async move |connection: &mut Connection| {
        if connection.peek(1).await?[0] == b'!' {
            replace(connection.as_fd().as_raw_fd());
            let result = support::echo(connection).await.and(connection.drain().await);
            let _ = said.lock().expect("no panic").send(result);
            // It waits for more, and is told.
            connection.next(2).await?;
        }
        support::echo(connection).await
    });
    let mut other = Peer::connect(server.local_addr());
    let mut peer = Peer::connect(server.local_addr());
    let start = Instant::now();
    peer.write_all(b"!").expect("sent");
    let error = error.recv_timeout(PATIENCE).expect("told").expect_err("it cannot be sent");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK), "{error}");
    assert_eq!(peer.read_rest().expect("the end"), b"");
    eventually("the connection is over", || server.settled().closed == 1);
    assert!(start.elapsed() < PATIENCE / 2, "over after {:?}", start.elapsed());
    assert_eq!(other.round_trip(b"x"), b"x");
}

fn an_idle_connection_whose_descriptor_is_replaced_does_not_hold_up_a_shutdown(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        support::echo(connection).await?;
        connection.drain().await?;
        replace(connection.as_fd().as_raw_fd());
        Ok(())
    });
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    eventually("the request is over", || server.settled().requests == 1);
    let start = Instant::now();
    thread::scope(|scope| {
        // Wakes the poller again and again, which must not have it begin to wait anew.
        let (end, ended) = mpsc::channel::<()>();
        let server = &server;
        scope.spawn(move || {
            while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                server.settled();
            }
        });
        assert_eq!(server.shutdown(PATIENCE), 0);
        drop(end);
    });
    // Not until its bound: it has let go of the descriptor by itself.
    assert!(start.elapsed() < PATIENCE / 2, "held up for {:?}", start.elapsed());
    assert_eq!(peer.read_rest().expect("the end"), b"");
}

fn a_listener_whose_descriptor_is_replaced_harms_nobody(setup: Setup) {
    let listener = setup.listener();
    let descriptor = listener.as_fd().as_raw_fd();
    let server = setup.builder().on_request(support::echo).serve(listener).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    replace(descriptor);
    // io_uring may have an accept under way, which holds the listener.
    let last = try_connect(server.local_addr()).and_then(|mut last| {
        last.write_all(b"y")?;
        last.read(&mut [0])
    });
    assert!(setup.engine == Engine::Uring || last.is_err(), "nobody listens");
    let waits = server.settled().waits;
    // Not to wait for something: how often the poller looks meanwhile is the test.
    thread::sleep(Duration::from_millis(200));
    let waits = server.settled().waits - waits;
    assert!(waits < 100, "{waits} waits for nothing");
    assert_eq!(peer.round_trip(b"z"), b"z");
    assert_eq!(server.shutdown(PATIENCE), 0);
}
