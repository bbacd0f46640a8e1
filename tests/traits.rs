//! Connections as readers and writers of tokio and futures: the same bodies for both.

mod support;

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::pin::pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use duopoll::time::{sleep, timeout};
use duopoll::{Connection, Limits};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Pattern, Peer, Random, Setup, connected, eventually, scaled};

macro_rules! for_both {
    ($($name:ident,)*) => {
        mod by_tokio {
            use super::*;
            use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

            /// Sends all, and then the FIN.
            async fn close(writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
                writer.shutdown().await
            }

            bodies!();
            on_every_setup!($($name,)*);
        }

        mod by_futures {
            use super::*;
            use futures::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

            async fn close(writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
                writer.close().await
            }

            bodies!();
            on_every_setup!($($name,)*);
        }
    };
}

macro_rules! bodies {
    () => {
        fn every_byte_arrives_once(setup: Setup) {
            let (_pollers, connection, mut peer) = connected(setup, Limits::default());
            let bytes = scaled(16 << 20);
            let mut back = peer.try_clone();
            let echo = thread::spawn(move || io::copy(&mut back, &mut peer));
            let (mut reader, mut writer) = connection.into_split();
            let writes = async move {
                let (mut random, mut pattern) = (Random::new(1), Pattern::new(7));
                let mut left = bytes;
                while left > 0 {
                    let piece = pattern.next(random.length(100_000).min(left)).to_vec();
                    left -= piece.len();
                    let (first, second) = piece.split_at(piece.len() / 3);
                    // Some in two pieces at once.
                    let pieces = [IoSlice::new(first), IoSlice::new(second)];
                    let taken = writer.write_vectored(&pieces).await?;
                    writer.write_all(&piece[taken..]).await?;
                }
                close(&mut writer).await
            };
            let reads = async move {
                let (mut random, mut pattern) = (Random::new(2), Pattern::new(7));
                let mut buffer = vec![0; 100_000];
                let mut seen = 0;
                loop {
                    let n = random.length(buffer.len());
                    match AsyncReadExt::read(&mut reader, &mut buffer[..n]).await? {
                        0 => return io::Result::Ok(seen),
                        n => {
                            assert!(pattern.matches(&buffer[..n]), "other bytes after {seen}");
                            seen += n;
                        }
                    }
                }
            };
            let writes = thread::spawn(move || block_on(writes));
            assert_eq!(block_on(reads).expect("read"), bytes);
            writes.join().expect("no panic").expect("sent");
            echo.join().expect("no panic").expect("echoed");
        }

        /// On the poller, where the kernel takes them as they lie: mixed with small ones, in pieces, and past a peer that
        /// is slow now and then.
        fn large_writes_of_a_handler_arrive_once(setup: Setup) {
            let bytes = scaled(16 << 20);
            let server = setup.serve(async move |connection: &mut Connection| {
                connection.skip(1).await?;
                let (mut random, mut pattern) = (Random::new(3), Pattern::new(5));
                let mut left = bytes;
                while left > 0 {
                    let longest = [100, 50_000, 2_000_000][random.next() as usize % 3];
                    let piece = pattern.next(random.length(longest).min(left)).to_vec();
                    left -= piece.len();
                    if random.next() % 4 == 0 {
                        connection.writer_mut().write(&piece)?;
                        continue;
                    }
                    let pieces: Vec<_> =
                        piece.chunks(random.length(piece.len())).map(IoSlice::new).collect();
                    let taken = connection.write_vectored(&pieces).await?;
                    connection.write_all(&piece[taken..]).await?;
                }
                close(connection).await
            });
            let mut peer = Peer::connect(server.local_addr());
            peer.write_all(b"?").expect("sent");
            let (mut random, mut pattern) = (Random::new(4), Pattern::new(5));
            let (mut buffer, mut seen) = (vec![0; 1 << 20], 0);
            loop {
                if random.next() % 50 == 0 {
                    thread::sleep(Duration::from_millis(3));
                }
                let n = random.length(buffer.len());
                match peer.read(&mut buffer[..n]).expect("read") {
                    0 => break,
                    n => {
                        assert!(pattern.matches(&buffer[..n]), "other bytes after {seen}");
                        seen += n;
                    }
                }
            }
            assert_eq!(seen, bytes);
            assert_eq!(server.settled().sent_bytes, bytes as u64);
        }

        fn lines_are_read_where_they_lie(setup: Setup) {
            let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
            peer.write_all(b"one\ntwo\nand no end").expect("sent");
            peer.shutdown(Shutdown::Write);
            block_on(async {
                let mut line = Vec::new();
                for expected in ["one\n", "two\n", "and no end", ""] {
                    line.clear();
                    connection.read_until(b'\n', &mut line).await.expect("a line");
                    assert_eq!(line, expected.as_bytes());
                }
            });
        }

        fn a_write_needs_no_flush(setup: Setup) {
            let server = setup.serve(async |connection: &mut Connection| {
                let mut request = [0; 4];
                connection.read_exact(&mut request).await?;
                for byte in request {
                    connection.write_all(&[byte, byte]).await?;
                }
                Ok(())
            });
            let mut peer = Peer::connect(server.local_addr());
            for _ in 0..10 {
                assert_eq!(peer.round_trip_of(b"abcd", 8), b"aabbccdd");
            }
            // What was written in a turn went out in one send.
            assert_eq!(server.settled().sends, 10);
        }

        fn reads_that_are_given_up_lose_nothing(setup: Setup) {
            let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
            connection.set_read_timeout(Some(PATIENCE));
            let reads = pollers.spawn(move || async move {
                let mut seen = Vec::new();
                let mut buffer = [0; 7];
                while seen.len() < 1000 {
                    let given_up = Duration::from_micros(300);
                    if let Ok(read) =
                        timeout(given_up, AsyncReadExt::read(&mut connection, &mut buffer)).await
                    {
                        seen.extend_from_slice(&buffer[..read?]);
                    }
                }
                // A read that was given up is not one that takes too long later.
                connection.set_read_timeout(Some(Duration::from_millis(500)));
                let _ = timeout(
                    Duration::from_millis(5),
                    AsyncReadExt::read(&mut connection, &mut buffer),
                )
                .await;
                sleep(Duration::from_millis(600)).await;
                let asked = connection.write_all(b"more").await;
                let read = AsyncReadExt::read(&mut connection, &mut buffer).await;
                io::Result::Ok((seen, asked.and(read)?))
            });
            let expected: Vec<_> = (0..1000).map(|byte| byte as u8).collect();
            for piece in expected.chunks(3) {
                peer.write_all(piece).expect("sent");
                thread::sleep(Duration::from_micros(100));
            }
            let mut asked = [0; 4];
            peer.read_exact(&mut asked).expect("asked");
            peer.write_all(b"x").expect("sent");
            let (seen, n) = block_on(reads).expect("no panic").expect("read");
            assert_eq!((seen, n), (expected, 1));
        }

        fn writes_wait_for_room(setup: Setup) {
            let mut limits = Limits::default();
            limits.output_high_bytes = 64 << 10;
            let (_pollers, mut connection, mut peer) = connected(setup, limits);
            let piece = vec![7; 1 << 20];
            // Until the kernel has as much as it takes, and the connection as much as it may.
            let mut sent = 0;
            loop {
                let writer = connection.writer_mut();
                let mut cx = Context::from_waker(std::task::Waker::noop());
                let taken = pin!(AsyncWriteExt::write(writer, &piece)).poll(&mut cx);
                match taken {
                    Poll::Ready(taken) => sent += taken.expect("taken"),
                    Poll::Pending => {
                        let unsent = writer.unsent_len();
                        assert!(unsent <= 68 << 10, "{unsent} bytes are unsent");
                        if unsent > 32 << 10 {
                            break;
                        }
                    }
                }
                thread::yield_now();
            }
            connection.set_write_timeout(Some(Duration::from_millis(20)));
            // The kernel may take some more.
            let error = loop {
                if let Err(error) = block_on(connection.write_all(&piece)) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            // What was taken is still there to be sent.
            connection.set_write_timeout(None);
            let reads = thread::spawn(move || peer.read_rest());
            block_on(close(&mut connection)).expect("sent");
            let read = reads.join().expect("no panic").expect("read");
            assert!(read.len() >= sent && read.iter().all(|byte| *byte == 7));
        }

        fn all_is_sent_before_the_end(setup: Setup) {
            let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
            let all = vec![5; 3 << 20];
            let written = all.clone();
            let sends = thread::spawn(move || {
                block_on(async {
                    connection.write_all(&written).await?;
                    close(&mut connection).await?;
                    // Once more is harmless, and the other direction goes on.
                    close(&mut connection).await?;
                    let error = connection.write_all(b"late").await.expect_err("it has ended");
                    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
                    let mut rest = Vec::new();
                    connection.read_to_end(&mut rest).await?;
                    io::Result::Ok(rest)
                })
            });
            assert!(peer.read_rest().expect("the end") == all);
            peer.write_all(b"thanks").expect("sent");
            peer.shutdown(Shutdown::Write);
            assert_eq!(sends.join().expect("no panic").expect("sent"), b"thanks");
        }

        fn an_end_is_an_end_and_an_error_an_error(setup: Setup) {
            let (pollers, mut connection, peer) = connected(setup, Limits::default());
            drop(peer);
            let mut buffer = [0; 10];
            for _ in 0..2 {
                assert_eq!(
                    block_on(AsyncReadExt::read(&mut connection, &mut buffer)).expect("the end"),
                    0
                );
            }
            drop(connection);
            eventually("it is over", || pollers.settled().closed == 1);
            let (_pollers, mut connection, peer) = connected(setup, Limits::default());
            connection.abort();
            block_on(AsyncReadExt::read(&mut connection, &mut buffer)).expect_err("it is broken");
            block_on(connection.write_all(b"x")).expect_err("it is broken");
            drop(peer);
        }
    };
}
for_both!(
    every_byte_arrives_once,
    large_writes_of_a_handler_arrive_once,
    lines_are_read_where_they_lie,
    a_write_needs_no_flush,
    reads_that_are_given_up_lose_nothing,
    writes_wait_for_room,
    all_is_sent_before_the_end,
    an_end_is_an_end_and_an_error_an_error,
);

/// A stream of connections ends with its listener only.
mod incoming {
    use super::*;
    use futures::StreamExt;

    fn connections_come_in_a_stream(setup: Setup) {
        let pollers = setup.pollers(1);
        let mut incoming = setup.listener().pollers(pollers.clone()).into_incoming();
        let address = incoming.listener().local_addr().expect("bound");
        for _ in 0..3 {
            // Given up once before it comes.
            assert!(support::poll_once(pin!(incoming.next())).is_pending());
            let mut peer = Peer::connect(&address);
            peer.write_all(b"x").expect("sent");
            let accepted = block_on(incoming.next()).expect("it does not end");
            let mut connection = accepted.expect("accepted");
            assert_eq!(block_on(Connection::next(&mut connection, 1)).expect("a byte"), b"x");
        }
        pollers.stop();
        block_on(incoming.next()).expect("it does not end").expect_err("nobody accepts");
    }

    on_every_setup!(connections_come_in_a_stream,);
}
