//! Descriptors that others have, or would: duplicates, and those that an exec would hand on.

mod support;

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::mpsc;

use duopoll::{Connection, Engine, Limits};
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, connected, eventually};

on_every_setup!(
    a_duplicate_of_a_descriptor_tells_nobody_after_the_close,
    no_descriptor_outlives_an_exec,
);

const HOLD: u8 = b'!';

/// On epoll the kernel reports what happens to a socket as long as anybody has it open.
fn a_duplicate_of_a_descriptor_tells_nobody_after_the_close(setup: Setup) {
    let (give, given) = mpsc::channel();
    let server = setup.serve(async move |connection: &mut Connection| {
        if connection.peek(1).await?[0] == HOLD {
            let _ = give.send(connection.as_fd().try_clone_to_owned()?);
            return Err(ErrorKind::Other.into());
        }
        support::echo(connection).await
    });
    let mut other = Peer::connect(server.local_addr());
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(other.round_trip(b"x"), b"x");
    peer.write_all(&[HOLD]).expect("sent");
    let duplicate = given.recv_timeout(PATIENCE).expect("a descriptor");
    eventually("the connection is over", || server.settled().closed == 1);
    let before = server.settled();
    // It may arrive or be refused: the duplicate is somebody else's.
    let _ = peer.write(b"late");
    drop(peer);
    for _ in 0..3 {
        assert_eq!(other.round_trip(b"x"), b"x");
    }
    let after = server.settled();
    assert_eq!(after.stale_events, 0);
    assert_eq!(after.received_bytes - before.received_bytes, 3);
    drop(duplicate);
}

/// The descriptors above the standard ones, and what they are.
fn descriptors() -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc/self/fd").expect("procfs").flatten();
    let described = entries.filter_map(|entry| {
        let number = entry.file_name().to_string_lossy().parse().ok()?;
        Some((number, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
    });
    described.collect()
}

fn no_descriptor_outlives_an_exec(setup: Setup) {
    // What the test itself was started with is not looked at.
    let inherited = descriptors();
    let (_pollers, connection, mut peer) = connected(setup, Limits::default());
    let server = setup.serve_echo();
    let mut client = Peer::connect(server.local_addr());
    assert_eq!(client.round_trip(b"x"), b"x");
    peer.write_all(b"x").expect("sent");
    let ours = descriptors();
    let engine = if setup.engine == Engine::Uring { "io_uring" } else { "eventpoll" };
    assert!(ours.iter().any(|(_, what)| what.contains(engine)), "{ours:?}");
    for (number, what) in ours.iter().filter(|ours| !inherited.contains(ours)) {
        // SAFETY: takes no memory.
        let flags = unsafe { libc::fcntl(*number, libc::F_GETFD) };
        // Another test may have closed it by now.
        assert!(flags == -1 || flags & libc::FD_CLOEXEC != 0, "{number} is {what}");
    }
    drop(connection);
}
