//! What a reader gets, and when it is woken.

mod support;

use std::io::{ErrorKind, Write};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake};
use std::thread;

use duopoll::Limits;
use pollster::block_on;
use socket2::SockRef;
use support::{Pattern, Setup, connected, eventually, poll_once, wait_until_still};

on_every_setup!(
    a_reader_is_woken_when_all_that_it_waits_for_has_come,
    a_read_that_waits_gets_what_comes_with_the_fin,
    what_is_behind_the_last_line_stays_readable,
    a_large_message_is_one_slice,
    what_arrived_before_a_reset_is_read_before_it,
    a_reset_is_told_to_the_reader_though_a_send_waits,
);

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn a_reader_is_woken_when_all_that_it_waits_for_has_come(setup: Setup) {
    const BYTES: usize = 16 << 10;
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let wakes = Arc::new(Wakes::default());
    let waker = wakes.clone().into();
    let mut cx = Context::from_waker(&waker);
    assert!(connection.reader().poll_fill(&mut cx, BYTES).is_pending());
    let received = |bytes: usize| {
        eventually("it is received", || pollers.stats().received_bytes == bytes as u64);
        wakes.0.load(Ordering::Relaxed)
    };
    for piece in 1..4 {
        peer.write_all(&[7; BYTES / 4]).expect("sent");
        assert_eq!(received(piece * BYTES / 4), 0, "woken for less");
    }
    peer.write_all(&[7; BYTES / 4]).expect("sent");
    assert_eq!(received(BYTES), 1);
    assert!(connection.reader().poll_fill(&mut cx, BYTES).is_ready());
    // Nobody waits any more.
    peer.write_all(&[7; BYTES]).expect("sent");
    assert_eq!(received(2 * BYTES), 1);
}

fn a_read_that_waits_gets_what_comes_with_the_fin(setup: Setup) {
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    {
        let mut next = pin!(connection.next(256));
        assert!(poll_once(next.as_mut()).is_pending());
        peer.write_all(&[7; 256]).expect("sent");
        drop(peer);
        assert_eq!(block_on(next).expect("received"), [7; 256]);
    }
    assert!(!block_on(connection.more()).expect("the end"));
}

fn what_is_behind_the_last_line_stays_readable(setup: Setup) {
    const LINES: usize = 5000;
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let line = [b"x".repeat(500), b"\n".to_vec()].concat();
    thread::scope(|scope| {
        scope.spawn(|| {
            peer.write_all(&line.repeat(LINES)).expect("sent");
            peer.write_all(&[b'y'; 100]).expect("sent");
            drop(peer);
        });
        block_on(async {
            for _ in 0..LINES {
                assert_eq!(connection.until(b'\n', 1000).await.expect("a line"), *line);
            }
            let error = connection.until(b'\n', 1000).await.expect_err("no line");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            assert_eq!(connection.input().len(), 100);
            assert_eq!(connection.next(100).await.expect("the rest"), [b'y'; 100]);
        });
    });
}

fn a_large_message_is_one_slice(setup: Setup) {
    const BYTES: usize = 32 << 20;
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pattern = Pattern::new(11);
            let mut left = BYTES;
            while left > 0 {
                let piece = pattern.next(left);
                peer.write_all(piece).expect("sent");
                left -= piece.len();
            }
        });
        let message = block_on(connection.next(BYTES)).expect("received");
        assert_eq!(message.len(), BYTES);
        assert!(Pattern::new(11).matches(&message));
    });
}

fn what_arrived_before_a_reset_is_read_before_it(setup: Setup) {
    const BYTES: usize = 10_000;
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    // A Unix socket resets if it is closed with bytes unread, and never else.
    connection.write(b"x").expect("staged");
    block_on(connection.drain()).expect("sent");
    peer.write_all(&Pattern::new(12).next(BYTES)[..BYTES]).expect("sent");
    peer.reset();
    eventually("the reset is noticed", || !connection.is_active());
    let arrived = block_on(connection.next(BYTES)).expect("it has arrived");
    assert!(Pattern::new(12).matches(&arrived));
    let error = block_on(connection.next(1)).expect_err("a reset");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}");
}

/// The kernel tells of an error once, and it may be the send that it tells.
fn a_reset_is_told_to_the_reader_though_a_send_waits(setup: Setup) {
    for _ in 0..20 {
        let (pollers, mut connection, peer) = connected(setup, Limits::default());
        SockRef::from(&connection).set_send_buffer_size(32 << 10).expect("a size");
        // More than the kernel takes.
        connection.push(vec![7; 16 << 20]);
        let (reader, writer) = connection.split();
        let mut drain = pin!(writer.drain());
        assert!(poll_once(drain.as_mut()).is_pending());
        wait_until_still(&pollers);
        let mut fill = pin!(reader.fill(1));
        assert!(poll_once(fill.as_mut()).is_pending());
        peer.reset();
        let error = block_on(fill).expect_err("a reset");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}");
        let error = block_on(drain).expect_err("a reset");
        let errno = error.raw_os_error();
        assert!(matches!(errno, Some(libc::ECONNRESET | libc::EPIPE)), "{error}");
    }
}
