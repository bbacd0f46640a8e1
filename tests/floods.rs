//! Floods of bytes: they starve nobody, and receiving may be paused or ended in their midst.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use duopoll::{Connection, Limits};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Pattern, Peer, Setup, connected};

on_every_setup!(
    a_flood_that_takes_every_buffer_starves_nobody,
    pausing_under_a_flood_loses_no_byte,
    leaving_under_a_flood_loses_no_byte,
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
    let shortages = server.settled().buffer_shortages;
    let shares = server.engine_report().tier.contains("multishot-receive");
    assert_eq!(shortages > 0, shares, "{shortages} shortages");
    assert_eq!(server.settled().closed, 0);
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
            while let Some(chunk) = connection.input_mut().next_chunk(usize::MAX) {
                assert!(pattern.matches(&chunk), "wrong bytes behind {received}");
                received += chunk.len();
            }
        }
        assert_eq!(received, BYTES);
    });
}

fn leaving_under_a_flood_loses_no_byte(setup: Setup) {
    const BYTES: usize = 1 << 20;
    let pollers = setup.pollers(1);
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
