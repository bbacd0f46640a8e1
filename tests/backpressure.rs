//! Watermarks: a side that does not take what comes holds the other one back, and no more memory is used.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Limits, Slice};
use pollster::block_on;
use socket2::SockRef;
use support::settled::Settled;
use support::{PATIENCE, Pattern, Setup, connected, eventually, poll_once};

on_every_setup!(
    a_reader_that_takes_nothing_holds_the_peer_back,
    a_reader_may_wait_for_more_than_the_watermark,
    a_flush_waits_above_the_watermark,
    closing_while_a_flush_waits_keeps_to_the_write_timeout,
    a_write_deadline_ends_a_flush_and_a_later_one_revives_it,
    a_late_completion_does_not_end_a_later_flush,
    what_was_taken_in_part_goes_out_though_nobody_waits_for_it,
    an_abort_wakes_a_flush_that_waits,
    a_close_lets_a_flush_that_waits_finish,
    a_dropped_connection_sends_what_was_flushed,
    many_pieces_go_out_in_few_sends,
    a_flush_of_gigabytes_is_taken_in_turns,
);

const HIGH: usize = 64 << 10;

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.input_high_bytes = HIGH;
    limits.output_high_bytes = HIGH;
    limits
}

fn a_reader_that_takes_nothing_holds_the_peer_back(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, limits());
    let mut pattern = Pattern::new(21);
    peer.set_timeout(Duration::from_millis(200));
    let mut sent = 0;
    let mut left: &[u8] = &[];
    // Until the kernel's buffers are full, and nothing moves any more.
    loop {
        if left.is_empty() {
            left = pattern.next(64 << 10);
        }
        let Ok(n) = peer.write(left) else { break };
        left = &left[n..];
        sent += n;
        assert!(sent < 256 << 20, "nothing holds the peer back");
    }
    let received = pollers.settled().received_bytes;
    let most = HIGH as u64 + setup.overrun_bytes();
    assert!(received <= most, "{received} bytes were received");
    peer.set_timeout(PATIENCE);
    thread::scope(|scope| {
        scope.spawn(|| {
            peer.write_all(left).expect("sent");
            peer.write_all(pattern.next(100_000)).expect("sent");
            drop(peer);
        });
        let mut pattern = Pattern::new(21);
        let mut taken = 0;
        while block_on(connection.more()).expect("received") {
            while let Some(chunk) = connection.input_mut().next_chunk(usize::MAX) {
                assert!(pattern.matches(&chunk), "wrong bytes behind {taken}");
                taken += chunk.len();
            }
        }
        assert!(taken > sent);
    });
}

fn a_reader_may_wait_for_more_than_the_watermark(setup: Setup) {
    let (_pollers, mut connection, mut peer) = connected(setup, limits());
    let bytes = &Pattern::new(22).next(10 * HIGH)[..10 * HIGH];
    thread::scope(|scope| {
        scope.spawn(|| peer.write_all(bytes).expect("sent"));
        assert_eq!(block_on(connection.next(bytes.len())).expect("received"), *bytes);
    });
}

fn a_flush_waits_above_the_watermark(setup: Setup) {
    let (_pollers, mut connection, mut peer) = connected(setup, limits());
    SockRef::from(&connection).set_send_buffer_size(256 << 10).expect("a size");
    // At the watermark a flush need not wait, whatever the kernel does.
    connection.push(vec![7; HIGH]);
    assert!(poll_once(pin!(connection.flush())).is_ready());
    const BYTES: usize = 16 << 20;
    connection.push(vec![7; BYTES - HIGH]);
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    {
        let mut flush = pin!(connection.flush());
        assert!(poll_once(flush.as_mut()).is_pending());
        while received < BYTES / 2 {
            received += peer.read(&mut buffer).expect("received");
        }
        // What is missing is more than the kernel and the watermark hold.
        assert!(poll_once(flush.as_mut()).is_pending());
        thread::scope(|scope| {
            scope.spawn(|| {
                while received < BYTES {
                    received += peer.read(&mut buffer).expect("received");
                }
            });
            block_on(flush).expect("sent");
        });
    }
    assert!(connection.writer_mut().unsent_len() <= HIGH / 2);
    block_on(connection.drain()).expect("sent");
    assert_eq!((connection.writer_mut().unsent_len(), received), (0, BYTES));
}

fn closing_while_a_flush_waits_keeps_to_the_write_timeout(setup: Setup) {
    let (pollers, mut connection, peer) = connected(setup, limits());
    connection.push(vec![7; 16 << 20]);
    let control = connection.control();
    let start = Instant::now();
    {
        let mut drain = pin!(connection.drain());
        assert!(poll_once(drain.as_mut()).is_pending());
        control.set_write_timeout(Some(Duration::from_millis(50)));
        control.close();
        let error = block_on(drain).expect_err("the peer does not read");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
    drop(connection);
    eventually("it is over", || pollers.settled().closed == 1);
    assert_eq!(pollers.settled().forced, 1);
    assert!(start.elapsed() < Duration::from_secs(5), "after {:?}", start.elapsed());
    drop(peer);
}

fn a_write_deadline_ends_a_flush_and_a_later_one_revives_it(setup: Setup) {
    const BYTES: usize = 16 << 20;
    let (_pollers, mut connection, mut peer) = connected(setup, limits());
    let control = connection.control();
    connection.push(vec![7; BYTES]);
    {
        let mut flush = pin!(connection.flush());
        assert!(poll_once(flush.as_mut()).is_pending());
        control.set_write_deadline(Some(Instant::now() - Duration::from_secs(1)));
        assert_eq!(block_on(flush).expect_err("too late").kind(), ErrorKind::TimedOut);
    }
    // What was flushed is the connection's, and is sent all the same.
    assert_eq!(block_on(connection.flush()).expect_err("too late").kind(), ErrorKind::TimedOut);
    control.set_write_deadline(None);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut received = vec![0; BYTES];
            peer.read_exact(&mut received).expect("received");
            assert!(received.iter().all(|byte| *byte == 7));
        });
        block_on(connection.drain()).expect("sent");
    });
}

/// The flush that was given up is done when nobody waits for it any more.
fn a_late_completion_does_not_end_a_later_flush(setup: Setup) {
    const BYTES: usize = 16 << 20;
    let (pollers, mut connection, mut peer) = connected(setup, limits());
    connection.set_write_timeout(Some(Duration::from_millis(50)));
    connection.push(vec![7; BYTES]);
    assert_eq!(block_on(connection.drain()).expect_err("late").kind(), ErrorKind::TimedOut);
    connection.set_write_timeout(None);
    let mut received = vec![0; BYTES];
    peer.read_exact(&mut received).expect("received");
    eventually("all is sent", || pollers.settled().sent_bytes == BYTES as u64);
    connection.push(vec![8; BYTES]);
    {
        let mut drain = pin!(connection.drain());
        assert!(poll_once(drain.as_mut()).is_pending(), "nobody has read anything");
        thread::scope(|scope| {
            scope.spawn(|| peer.read_exact(&mut received).expect("received"));
            block_on(drain).expect("sent");
        });
    }
    assert!(received.iter().all(|byte| *byte == 8));
}

fn what_was_taken_in_part_goes_out_though_nobody_waits_for_it(setup: Setup) {
    const BYTES: usize = 60_000;
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    SockRef::from(&connection).set_send_buffer_size(8 << 10).expect("a size");
    let bytes = Pattern::new(26).next(BYTES);
    connection.write(bytes).expect("room");
    block_on(connection.flush()).expect("flushed");
    // The peer says nothing, and neither does anybody else: there is no other event than that there is room.
    let mut received = vec![0; BYTES];
    peer.read_exact(&mut received).expect("all of it");
    assert!(received == bytes);
}

fn an_abort_wakes_a_flush_that_waits(setup: Setup) {
    let (pollers, mut connection, _peer) = connected(setup, limits());
    let control = connection.control();
    connection.push(vec![7; 16 << 20]);
    {
        let mut flush = pin!(connection.flush());
        assert!(poll_once(flush.as_mut()).is_pending());
        control.abort();
        let error = block_on(flush).expect_err("aborted");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    }
    assert_eq!(connection.writer_mut().unsent_len(), 0);
    eventually("it is over", || pollers.settled().closed == 1);
}

fn a_close_lets_a_flush_that_waits_finish(setup: Setup) {
    const BYTES: usize = 16 << 20;
    let (_pollers, mut connection, mut peer) = connected(setup, limits());
    let control = connection.control();
    connection.push(vec![7; BYTES]);
    let mut drain = pin!(connection.drain());
    assert!(poll_once(drain.as_mut()).is_pending());
    control.close();
    assert!(poll_once(drain.as_mut()).is_pending());
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(peer.read_rest().expect("the end").len(), BYTES));
        block_on(drain).expect("sent");
    });
}

fn a_dropped_connection_sends_what_was_flushed(setup: Setup) {
    const BYTES: usize = 4 << 20;
    let (pollers, mut connection, mut peer) = connected(setup, limits());
    let bytes = [Pattern::new(23).next(1000), Pattern::new(24).next(1000)];
    connection.push(vec![7; BYTES]);
    // Mostly it waits. A kernel with much memory may have taken enough by now.
    let _ = poll_once(pin!(connection.flush()));
    for piece in bytes {
        connection.write(piece).expect("staged");
    }
    let _ = poll_once(pin!(connection.flush()));
    connection.write(b"never flushed").expect("staged");
    drop(connection);
    let received = peer.read_rest().expect("the end");
    assert_eq!(received.len(), BYTES + 2000);
    assert!(received[..BYTES].iter().all(|byte| *byte == 7) && received[BYTES..] == bytes.concat());
    drop(peer);
    eventually("it is over", || pollers.settled().closed == 1);
    assert_eq!(pollers.settled().forced, 0);
}

/// More than one send may have vectors.
fn many_pieces_go_out_in_few_sends(setup: Setup) {
    const PIECES: usize = 1000;
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let piece = |index: usize| vec![index as u8; 1 + index % 50];
    for index in 0..PIECES {
        connection.push(piece(index));
    }
    // Dropped with what is staged: it may be half a message.
    drop(connection);
    assert_eq!(peer.read_rest().expect("the end"), b"", "nothing was flushed");
    drop((peer, pollers));

    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    for index in 0..PIECES {
        connection.push(piece(index));
        // Nothing of these goes out.
        connection.push(Vec::new());
    }
    block_on(connection.drain()).expect("sent");
    connection.finish();
    let expected: Vec<u8> = (0..PIECES).flat_map(piece).collect();
    assert!(peer.read_rest().expect("the end") == expected);
    let sends = pollers.settled().sends;
    assert!(sends <= 2 * PIECES as u64 / 64, "{sends} sends for {PIECES} pieces");
}

/// One call cannot send as much.
fn a_flush_of_gigabytes_is_taken_in_turns(setup: Setup) {
    const PIECE: usize = 64 << 20;
    let (pollers, mut connection, mut peer) = connected(setup, limits());
    let piece = Slice::from(vec![7; PIECE]);
    for _ in 0..50 {
        connection.push(piece.clone());
    }
    assert!(connection.writer_mut().staged_len() > i32::MAX as usize);
    assert!(poll_once(pin!(connection.flush())).is_pending());
    let mut received = vec![0; 8 << 20];
    peer.read_exact(&mut received).expect("received");
    assert!(received.iter().all(|byte| *byte == 7));
    connection.abort();
    eventually("it is over", || pollers.settled().closed == 1);
}
