//! A sandbox that refuses io_uring when a poller runs on it already.

mod support;

use std::io::{ErrorKind, Write};
use std::pin::pin;
use std::process::Command;

use duopoll::{Engine, Limits};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, connected, eventually, poll_once, sandbox};

/// Tells the child process of a test that it is one.
const SANDBOXED: &str = "DUOPOLL_TEST_SANDBOXED";

/// The poller has been let in, and is not any more. A filter stays for good, so there is a process for it.
#[test]
fn a_sandbox_that_comes_late_ends_the_connections() {
    if std::env::var_os(SANDBOXED).is_some() {
        return is_sandboxed_late();
    }
    let test = std::env::current_exe().expect("the test has a path");
    let mut command = Command::new(test);
    command.args(["--exact", "a_sandbox_that_comes_late_ends_the_connections"]);
    let output = command.env(SANDBOXED, "1").output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn is_sandboxed_late() {
    let setup = Setup { engine: Engine::Uring, family: support::Family::V4 };
    let (_pollers, mut connection, peer) = connected(setup, Limits::default());
    let server = setup.serve_echo();
    let mut client = Peer::connect(server.local_addr());
    assert_eq!(client.round_trip(b"x"), b"x");
    {
        let mut waits = pin!(connection.next(1));
        assert!(poll_once(waits.as_mut()).is_pending());
        sandbox::refuse(sandbox::ENTER..=sandbox::ENTER, libc::EPERM).expect("a filter");
        // It wakes, and cannot sleep again.
        let mut peer = peer;
        peer.write_all(b"x").expect("sent");
        match block_on(waits) {
            Ok(byte) => assert_eq!(byte, *b"x"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}"),
        }
    }
    let error = block_on(connection.next(2)).expect_err("nobody polls");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    let _ = client.write_all(b"y");
    match client.read_rest() {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    // Whoever asks is answered.
    eventually("it is noticed", || server.settled().failed_pollers == 1);
    assert_eq!(server.shutdown(PATIENCE), 0);
}
