//! Watermarks: a side that does not take what comes holds the other one back, and no more memory is used.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::Limits;
use pollster::block_on;
use socket2::SockRef;
use support::{PATIENCE, Pattern, Setup, connected, eventually, poll_once};

on_every_setup!(
    a_reader_that_takes_nothing_holds_the_peer_back,
    a_reader_may_wait_for_more_than_the_watermark,
    a_flush_waits_above_the_watermark,
    closing_while_a_flush_waits_keeps_to_the_write_timeout,
    a_write_deadline_ends_a_flush_and_a_later_one_revives_it,
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
    // The watermark, and a receive that began below it.
    let received = pollers.stats().received_bytes;
    assert!(received <= (HIGH + (512 << 10)) as u64, "{received} bytes were received");
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
            while let Some(chunk) = connection.input().next_chunk(usize::MAX) {
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
    assert!(connection.writer().unsent_len() <= HIGH / 2);
    block_on(connection.drain()).expect("sent");
    assert_eq!((connection.writer().unsent_len(), received), (0, BYTES));
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
    eventually("it is over", || pollers.stats().closed == 1);
    assert_eq!(pollers.stats().forced, 1);
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
