//! What io_uring is known to trip its users up with, from the outside: nothing of it may be seen there. What the same
//! test means for epoll must hold as well.

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use duopoll::{Connection, Engine, Limits, Pollers};
use pollster::block_on;
use support::{PATIENCE, Pattern, Peer, Setup, connected, eventually, poll_once, sandbox};

on_every_setup!(
    a_flood_that_takes_every_buffer_starves_nobody,
    pausing_under_a_flood_loses_no_byte,
    leaving_under_a_flood_loses_no_byte,
    a_duplicate_of_a_descriptor_tells_nobody_after_the_close,
    no_descriptor_outlives_an_exec,
    a_child_that_is_forked_disturbs_nobody,
);

const HOLD: u8 = b'!';

/// While the poller is held, more comes than all of its buffers have room for.
fn a_flood_that_takes_every_buffer_starves_nobody(setup: Setup) {
    const FLOODS: usize = 40;
    const FLOOD_BYTES: usize = 128 << 10;
    let (hold, held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let server = setup.serve(async move |connection: &mut Connection| {
        if connection.peek(1).await?[0] == HOLD {
            let _ = hold.send(());
            let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
        }
        support::echo(connection).await
    });
    let peer = || {
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.round_trip(b"x"), b"x");
        peer
    };
    let [mut holder, mut idle, mut brief] = [(); 3].map(|()| peer());
    let mut floods: Vec<_> = (0..FLOODS).map(|_| peer()).collect();
    holder.write_all(&[HOLD]).expect("sent");
    held.recv_timeout(PATIENCE).expect("held");
    // Nothing of the pattern is at its start what makes the server wait.
    let flood = &[&b"x"[..], &Pattern::new(3).next(FLOOD_BYTES)[1..]].concat();
    let sent: Vec<_> = floods.iter_mut().map(|flooding| write_what_fits(flooding, flood)).collect();
    brief.write_all(b"brief").expect("sent");
    drop(release);
    let mut reply = [0; 5];
    brief.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"brief");
    for (flooding, sent) in floods.iter_mut().zip(sent) {
        let mut reply = vec![0; sent];
        flooding.read_exact(&mut reply).expect("a reply");
        assert!(reply == flood[..sent], "another reply than was sent");
    }
    assert_eq!(idle.round_trip(b"still there"), b"still there");
    let shortages = server.stats().buffer_shortages;
    let shares = server.engine_report().tier.contains("multishot-receive");
    assert_eq!(shortages > 0, shares, "{shortages} shortages");
    assert_eq!(server.stats().closed, 0);
}

/// Writes as much as the kernel has room for, and says how much that is.
fn write_what_fits(peer: &mut Peer, bytes: &[u8]) -> usize {
    peer.set_timeout(Duration::from_millis(10));
    let mut sent = 0;
    while sent < bytes.len() {
        match peer.write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    peer.set_timeout(PATIENCE);
    sent
}

fn pausing_under_a_flood_loses_no_byte(setup: Setup) {
    const BYTES: usize = 16 << 20;
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut pattern, mut left) = (Pattern::new(17), BYTES);
            while left > 0 {
                let piece = pattern.next(left.min(10_000));
                peer.write_all(piece).expect("sent");
                left -= piece.len();
            }
        });
        let (mut pattern, mut received) = (Pattern::new(17), 0);
        while block_on(connection.more()).expect("received") {
            // The cancellation is on its way when receiving goes on.
            connection.pause();
            connection.resume();
            while let Some(chunk) = connection.input().next_chunk(usize::MAX) {
                assert!(pattern.matches(&chunk), "wrong bytes behind {received}");
                received += chunk.len();
            }
        }
        assert_eq!(received, BYTES);
    });
}

fn leaving_under_a_flood_loses_no_byte(setup: Setup) {
    const BYTES: usize = 1 << 20;
    let pollers = Pollers::options().engine(setup.engine).count(1).start().expect("a poller");
    let listener = setup.listener().pollers(pollers.clone());
    let address = listener.local_addr().expect("bound");
    for round in 0..40 {
        let mut peer = Peer::connect(&address);
        let mut connection = block_on(listener.accept()).expect("accepted");
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut pattern, mut left) = (Pattern::new(round), BYTES);
                while left > 0 {
                    let piece = pattern.next(left.min(10_000));
                    peer.write_all(piece).expect("sent");
                    left -= piece.len();
                }
            });
            let mut pattern = Pattern::new(round);
            let front = round as usize * 5000;
            let bytes = block_on(connection.next(front)).expect("received");
            assert!(pattern.matches(&bytes), "wrong bytes at the front");
            let (socket, mut rest) = block_on(connection.detach()).expect("detached");
            let mut received = front + rest.len();
            while let Some(chunk) = rest.next_chunk(usize::MAX) {
                assert!(pattern.matches(&chunk), "wrong bytes in between");
            }
            let mut socket = blocking(socket);
            let mut buffer = vec![0; 64 << 10];
            loop {
                let n = socket.read(&mut buffer).expect("received");
                if n == 0 {
                    break;
                }
                assert!(pattern.matches(&buffer[..n]), "wrong bytes behind {received}");
                received += n;
            }
            assert_eq!(received, BYTES, "round {round}");
        });
    }
}

/// Read by nobody but the test from now on.
fn blocking(socket: OwnedFd) -> socket2::Socket {
    let socket = socket2::Socket::from(socket);
    socket.set_nonblocking(false).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

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
    eventually("the connection is over", || server.stats().closed == 1);
    let before = server.stats();
    // It may arrive or be refused: the duplicate is somebody else's.
    let _ = peer.write(b"late");
    drop(peer);
    for _ in 0..3 {
        assert_eq!(other.round_trip(b"x"), b"x");
    }
    let after = server.stats();
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

/// A child of this process that has its memory, and does nothing.
struct Child(libc::pid_t);

impl Child {
    fn fork() -> Child {
        // SAFETY: the child makes system calls only.
        let child = unsafe {
            let child = libc::fork();
            if child == 0 {
                // What it has of its parent's would keep that open.
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
                loop {
                    libc::pause();
                }
            }
            child
        };
        assert!(child > 0, "{}", std::io::Error::last_os_error());
        Child(child)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the child is ours, and has not been waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// A fork has every page copied that is written from then on, by the kernel or for it; and who has a ring mapped could
/// submit to it.
fn a_child_that_is_forked_disturbs_nobody(setup: Setup) {
    let server = setup.serve_echo();
    let mut peer = Peer::connect(server.local_addr());
    let mut pattern = Pattern::new(23);
    let mut converse = || {
        // More than all buffers of a ring have room for, several times.
        for _ in 0..400 {
            let message = pattern.next(64 << 10);
            let mut sender = peer.try_clone();
            thread::scope(|scope| {
                scope.spawn(move || sender.write_all(message).expect("sent"));
                let mut reply = vec![0; message.len()];
                peer.read_exact(&mut reply).expect("a reply");
                assert!(reply == message, "another reply than was sent");
            });
        }
    };
    let child = Child::fork();
    let mapped = fs::read_to_string(format!("/proc/{}/maps", child.0)).expect("procfs");
    assert!(!mapped.contains("io_uring"), "{mapped}");
    converse();
    let second = Child::fork();
    drop(child);
    converse();
    drop(second);
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
}

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
    eventually("it is noticed", || server.stats().failed_pollers == 1);
    assert_eq!(server.shutdown(PATIENCE), 0);
}
