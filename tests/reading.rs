//! What a reader gets, and when it is woken.

mod support;

use std::io::{self, ErrorKind, Write};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake};
use std::thread;

use duopoll::{Limits, Slice};
use pollster::block_on;
use socket2::SockRef;
use support::settled::Settled;
use support::{Pattern, Peer, Setup, connected, eventually, poll_once, wait_until_still};

on_every_setup!(
    a_reader_is_woken_when_all_that_it_waits_for_has_come,
    a_read_that_waits_gets_what_comes_with_the_fin,
    what_is_behind_the_last_line_stays_readable,
    messages_are_taken_while_others_arrive,
    messages_of_every_size_arrive_whole,
    a_large_message_is_one_slice,
    slices_outlive_their_connection,
    a_wait_moves_to_another_thread,
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
    assert!(connection.reader_mut().poll_fill(&mut cx, BYTES).is_pending());
    let received = |bytes: usize| {
        eventually("it is received", || pollers.settled().received_bytes == bytes as u64);
        wakes.0.load(Ordering::Relaxed)
    };
    for piece in 1..4 {
        peer.write_all(&[7; BYTES / 4]).expect("sent");
        assert_eq!(received(piece * BYTES / 4), 0, "woken for less");
    }
    peer.write_all(&[7; BYTES / 4]).expect("sent");
    assert_eq!(received(BYTES), 1);
    assert!(connection.reader_mut().poll_fill(&mut cx, BYTES).is_ready());
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
            assert_eq!(connection.input_mut().len(), 100);
            assert_eq!(connection.next(100).await.expect("the rest"), [b'y'; 100]);
        });
    });
}

fn messages_are_taken_while_others_arrive(setup: Setup) {
    const MESSAGES: usize = 1000;
    const BYTES: usize = 256;
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pattern = Pattern::new(13);
            for _ in 0..MESSAGES {
                peer.write_all(&pattern.next(BYTES)[..BYTES]).expect("sent");
            }
        });
        let mut pattern = Pattern::new(13);
        for _ in 0..MESSAGES {
            assert!(pattern.matches(&block_on(connection.next(BYTES)).expect("received")));
        }
    });
}

fn messages_of_every_size_arrive_whole(setup: Setup) {
    let sizes = (0..=24).rev().map(|bits| 1usize << bits);
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pattern = Pattern::new(14);
            for mut left in sizes.clone() {
                while left > 0 {
                    let piece = pattern.next(left);
                    peer.write_all(piece).expect("sent");
                    left -= piece.len();
                }
            }
        });
        let mut pattern = Pattern::new(14);
        for size in sizes.clone() {
            let message = block_on(connection.next(size)).expect("received");
            assert!(message.len() == size && pattern.matches(&message), "wrong among {size} bytes");
        }
    });
}

fn a_large_message_is_one_slice(setup: Setup) {
    const BYTES: usize = 32 << 20;
    let mut limits = Limits::default();
    limits.message_bytes_max = BYTES;
    let (_pollers, mut connection, mut peer) = connected(setup, limits);
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

/// Of a server that goes on, and whose memory is used by others.
fn slices_outlive_their_connection(setup: Setup) {
    const BYTES: usize = 1000;
    let pollers = setup.pollers(1);
    let listener = setup.listener().pollers(pollers.clone());
    let address = listener.local_addr().expect("bound");
    let mut kept = Vec::new();
    for seed in 0..20 {
        let mut peer = Peer::connect(&address);
        let mut connection = block_on(listener.accept()).expect("accepted");
        peer.write_all(&Pattern::new(seed).next(2 * BYTES)[..2 * BYTES]).expect("sent");
        kept.push((seed, block_on(connection.next(BYTES)).expect("received")));
        // The rest is left unread.
        block_on(connection.fill(BYTES)).expect("received");
    }
    drop(listener);
    eventually("all are over", || pollers.settled().closed == 20);
    drop(pollers);
    for (seed, slice) in kept {
        assert!(Pattern::new(seed).matches(&slice), "the bytes of {seed} have changed");
    }
}

/// As the tasks of executors with several threads do.
fn a_wait_moves_to_another_thread(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let wakes: [Arc<Wakes>; 2] = Default::default();
    let [first, second] = wakes.each_ref().map(|wakes| wakes.clone().into());
    {
        let mut next = Box::pin(connection.next(10));
        let poll = |next: &mut Pin<Box<_>>, waker| -> Poll<io::Result<Slice>> {
            Future::poll(Pin::as_mut(next), &mut Context::from_waker(waker))
        };
        assert!(poll(&mut next, &first).is_pending());
        thread::scope(|scope| {
            scope.spawn(|| assert!(poll(&mut next, &second).is_pending()));
        });
        peer.write_all(b"0123456789").expect("sent");
        eventually("it is woken", || wakes[1].0.load(Ordering::Relaxed) == 1);
        assert_eq!(wakes[0].0.load(Ordering::Relaxed), 0, "woken by a waker of before");
        let Poll::Ready(bytes) = poll(&mut next, &first) else { panic!("all is there") };
        assert_eq!(bytes.expect("received"), b"0123456789");
    }
    // And to another one with the connection.
    peer.write_all(b"x").expect("sent");
    let moved = thread::spawn(move || block_on(connection.next(1)).expect("received"));
    assert_eq!(moved.join().expect("no panic"), b"x");
    drop(peer);
    eventually("it is over", || pollers.settled().closed == 1);
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
