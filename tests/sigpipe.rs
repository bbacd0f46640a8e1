//! Sending to a socket that takes nothing more is an error, and no signal.
//!
//! One test in a process of its own, which a SIGPIPE ends: std ignores the signal, other programs do not.

mod support;

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, mpsc};

use duopoll::{Connection, Engine};
use support::{Family, PATIENCE, Peer, Setup};

#[test]
fn a_broken_pipe_raises_no_signal() {
    // SAFETY: the default action is set before anything else runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    for engine in [Engine::Epoll, Engine::Uring] {
        for family in [Family::V4, Family::V6, Family::Unix] {
            // One vector, and several.
            for pieces in [1, 3] {
                breaks(Setup { engine, family }, pieces);
            }
        }
    }
}

fn breaks(setup: Setup, pieces: usize) {
    let (said, errno) = mpsc::channel();
    let said = Mutex::new(said);
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.skip(1).await?;
        // SAFETY: takes no memory.
        unsafe { libc::shutdown(connection.as_fd().as_raw_fd(), libc::SHUT_WR) };
        for _ in 0..pieces {
            connection.push(vec![b'x'; 1000]);
        }
        let error = connection.drain().await.expect_err("nothing can be sent");
        let _ = said.lock().expect("no panic").send(error.raw_os_error());
        Err(io::ErrorKind::BrokenPipe.into())
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    let errno = errno.recv_timeout(PATIENCE).expect("the drain ends");
    assert_eq!(errno, Some(libc::EPIPE), "{setup:?}");
    assert_eq!(peer.read_rest().expect("the end"), b"");
}
