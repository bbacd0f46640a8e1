//! How large a message may be, and how long it may take.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::pin::pin;
use std::thread;
use std::time::Duration;

use duopoll::{Connection, Limits};
use pollster::block_on;
use support::settled::Settled;
use support::{Peer, Setup, connected, eventually, poll_once, scaled};

on_every_setup!(
    what_is_larger_than_a_message_may_be_is_refused,
    a_handler_that_leaves_too_much_unread_is_ended,
    how_a_message_arrives_does_not_matter,
    peers_that_announce_too_much_cost_nothing,
    frames_are_read_whole,
    a_frame_is_one_wait,
    a_line_is_one_wait,
    a_request_has_its_time,
    many_requests_of_one_connection_hold_up_nobody,
);

/// The length of what follows, as four bytes.
fn length(header: &[u8]) -> std::io::Result<usize> {
    Ok(u32::from_be_bytes(header.try_into().expect("four bytes")) as usize)
}

fn what_is_larger_than_a_message_may_be_is_refused(setup: Setup) {
    const MAX: usize = 1000;
    let mut limits = Limits::default();
    limits.message_bytes_max = MAX;
    let mut calls = 0;
    loop {
        let (_pollers, mut connection, mut peer) = connected(setup, limits);
        peer.write_all(&[7; MAX]).expect("sent");
        // As much as that is fine.
        assert_eq!(block_on(connection.peek(MAX)).expect("not too much").len(), MAX);
        let error = match calls {
            0 => block_on(connection.fill(MAX + 1)).expect_err("too much"),
            1 => block_on(connection.next(MAX + 1)).map(drop).expect_err("too much"),
            2 => block_on(connection.peek(usize::MAX)).map(drop).expect_err("too much"),
            3 => {
                block_on(connection.reader_mut().split_to(MAX + 1)).map(drop).expect_err("too much")
            }
            4 => block_on(connection.until(b'x', 2 * MAX)).map(drop).expect_err("too much"),
            5 => block_on(connection.more()).map(drop).expect_err("too much"),
            6 => block_on(connection.frame(4, |_| Ok(MAX))).map(drop).expect_err("too much"),
            _ => break,
        };
        calls += 1;
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains("message_bytes_max"), "{error}");
        // What was received is there, what is to be said can be said, and nothing more comes.
        assert_eq!(block_on(connection.next(MAX)).expect("received").len(), MAX);
        let error = block_on(connection.next(1)).expect_err("no more");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
        connection.write(b"too much").expect("it is open");
        connection.close();
        assert_eq!(peer.read_rest().expect("the end"), b"too much");
    }
    assert_eq!(calls, 7);
}

fn a_handler_that_leaves_too_much_unread_is_ended(setup: Setup) {
    let service = setup.builder().message_bytes_max(1000);
    let service = service.on_request(async |_: &mut Connection| Ok(()));
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    let _ = peer.write_all(&[7; 100_000]);
    eventually("it is ended", || server.server_stats().handler_errors == 1);
    let _ = peer.read_rest();
}

/// A message that is too large is that in one piece, in two, and behind others.
fn how_a_message_arrives_does_not_matter(setup: Setup) {
    let service = setup.builder().message_bytes_max(1000);
    let service = service.on_request(async |connection: &mut Connection| {
        let body = connection.frame(4, length).await?;
        connection.write(&(body.len() as u32).to_be_bytes())
    });
    let server = service.serve(setup.listener()).expect("a server");
    let framed = |bytes: usize| {
        let mut message = (bytes as u32).to_be_bytes().to_vec();
        message.resize(4 + bytes, 7);
        message
    };
    // The header counts.
    let fits = framed(996);
    for too_much in [997, 2000, 40_000, 300_000] {
        let message = framed(too_much);
        let mut at_once = Peer::connect(server.local_addr());
        let _ = at_once.write_all(&[&fits[..], &message].concat());
        let mut in_pieces = Peer::connect(server.local_addr());
        assert_eq!(in_pieces.round_trip_of(&fits, 4), 996_u32.to_be_bytes());
        for piece in message.chunks(message.len() / 3) {
            let _ = in_pieces.write_all(piece);
        }
        for (mut peer, replies) in [(at_once, 1), (in_pieces, 0)] {
            let mut replied = Vec::new();
            // A reset, if something was on its way when it was ended.
            let _ = peer.read_to_end(&mut replied);
            assert!(replied.len() <= 4 * replies, "{too_much} bytes were answered");
        }
    }
    eventually("each has ended with an error", || server.server_stats().handler_errors == 8);
    assert_eq!(server.server_stats().requests, 4 + 4 + 8);
}

/// They announce 2 GiB each, and send as fast as they can.
fn peers_that_announce_too_much_cost_nothing(setup: Setup) {
    let peers = scaled(100);
    let server = setup.serve(async |connection: &mut Connection| {
        let body = connection.frame(4, length).await?;
        connection.push(body);
        connection.flush().await
    });
    let mut good = Peer::connect(server.local_addr());
    thread::scope(|scope| {
        for _ in 0..peers {
            let server = &server;
            scope.spawn(move || {
                let mut peer = Peer::connect(server.local_addr());
                let _ = peer.write_all(&0x7fff_ffff_u32.to_be_bytes());
                // Until it is told that nobody wants it.
                while peer.write_all(&[7; 64 << 10]).is_ok() {}
            });
        }
        for _ in 0..100 {
            good.write_all(b"\0\0\0\x02ok").expect("sent");
            let mut reply = [0; 2];
            std::io::Read::read_exact(&mut good, &mut reply).expect("served");
            assert_eq!(&reply, b"ok");
        }
    });
    assert_eq!(server.settled().handler_errors, peers as u64);
    let held = duopoll::Pool::global().stats().live_bytes;
    assert!(held < 64 << 20, "{held} bytes are held");
}

fn frames_are_read_whole(setup: Setup) {
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let body = support::Pattern::new(5).next(200_000).to_vec();
    peer.write_all(&[0, 3]).expect("sent");
    // Polled and dropped as often as one likes: nothing is consumed before all of it is there.
    for byte in [13, 64] {
        eventually("it has come", || {
            poll_once(pin!(connection.frame(4, length))).is_pending()
                && connection.input_mut().len() >= 2
        });
        peer.write_all(&[byte]).expect("sent");
    }
    let sending = body.clone();
    let sender = thread::spawn(move || {
        peer.write_all(&sending).expect("sent");
        peer.write_all(b"\0\0\0\0\0\0\0\x01z").expect("sent");
        peer
    });
    let (first, second) = body.split_at(0x0003_0d40);
    assert_eq!(block_on(connection.frame(4, length)).expect("a frame"), first);
    assert_eq!(second, b"");
    assert_eq!(block_on(connection.frame(4, length)).expect("an empty one"), b""[..]);
    assert_eq!(block_on(connection.frame(4, length)).expect("a frame"), b"z"[..]);
    let mut peer = sender.join().expect("no panic");
    peer.write_all(b"bad!").expect("sent");
    let refuses = |_: &[u8]| Err(std::io::Error::other("no such frame"));
    let error = block_on(connection.frame(4, refuses)).expect_err("refused");
    assert_eq!(error.to_string(), "no such frame");
    assert_eq!(block_on(connection.next(4)).expect("not consumed"), b"bad!"[..]);
    drop(peer);
    let error = block_on(connection.frame(4, length)).expect_err("the end");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

/// A peer that sends a byte now and then, each within the read timeout, until it is told to stop.
fn trickles(mut peer: Peer, what: u8) -> impl FnOnce() + Send {
    move || {
        let mut sent = 0;
        while peer.write_all(&[what]).is_ok() {
            sent += 1;
            assert!(sent < 6000, "nobody stops it");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn a_frame_is_one_wait(setup: Setup) {
    let mut limits = Limits::default();
    limits.read_timeout = Some(Duration::from_millis(100));
    let (_pollers, mut connection, mut peer) = connected(setup, limits);
    peer.write_all(&[0, 0, 100, 0]).expect("sent");
    thread::scope(|scope| {
        scope.spawn(trickles(peer, 0));
        let error = block_on(connection.frame(4, length)).expect_err("it takes too long");
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::TimedOut, None));
        connection.abort();
    });
}

fn a_line_is_one_wait(setup: Setup) {
    let mut limits = Limits::default();
    limits.read_timeout = Some(Duration::from_millis(100));
    let (_pollers, mut connection, peer) = connected(setup, limits);
    thread::scope(|scope| {
        scope.spawn(trickles(peer, b'a'));
        let error = block_on(connection.until(b'\n', 1 << 20)).expect_err("it takes too long");
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::TimedOut, None));
        connection.abort();
    });
}

/// A parser that asks for more whenever its message is incomplete.
fn a_request_has_its_time(setup: Setup) {
    let service = setup.builder().read_timeout(Duration::from_secs(10));
    let service = service.request_timeout(Duration::from_millis(100));
    let service = service.on_request(async |connection: &mut Connection| {
        while connection.input_mut().find(b'\n', 0).is_none() {
            if !connection.more().await? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        support::echo(connection).await
    });
    let server = service.serve(setup.listener()).expect("a server");
    let mut quick = Peer::connect(server.local_addr());
    assert_eq!(quick.round_trip(b"a\n"), b"a\n");
    thread::scope(|scope| {
        scope.spawn(trickles(Peer::connect(server.local_addr()), b'a'));
        eventually("it takes too long", || server.server_stats().handler_errors == 1);
    });
    // Its time begins with its first byte, and not before.
    assert_eq!(quick.round_trip(b"b\n"), b"b\n");
}

/// 64 KiB of requests of one byte, of which each is handled by itself.
fn many_requests_of_one_connection_hold_up_nobody(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        let request = connection.next(1).await?;
        connection.push(request);
        Ok(())
    });
    let mut many = Peer::connect(server.local_addr());
    let mut reader = many.try_clone();
    let mut other = Peer::connect(server.local_addr());
    thread::scope(|scope| {
        scope.spawn(|| many.write_all(&[b'm'; 64 << 10]).expect("sent"));
        for _ in 0..20 {
            assert_eq!(other.round_trip(b"o"), b"o");
        }
        let mut all = vec![0; 64 << 10];
        std::io::Read::read_exact(&mut reader, &mut all).expect("answered");
        assert!(all.iter().all(|byte| *byte == b'm'));
    });
    // Each run of the task handles no more than so many.
    let stats = server.settled();
    assert!(stats.task_polls >= (64 << 10) / 256, "{stats}");
}
