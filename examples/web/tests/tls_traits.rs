//! TLS as a reader and writer of tokio's and of futures' traits.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use common::tls::pair;
use duopoll::Limits;
use duopoll::time::sleep;
use duopoll::tls::TlsConnection;
use pollster::block_on;
use support::{Pattern, Random, Setup, poll_once, scaled};

macro_rules! bodies {
    () => {
        fn every_byte_goes_both_ways(setup: Setup) {
            let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
            let bytes = scaled(4 << 20);
            let echoes = thread::spawn(move || {
                let (mut buffer, mut left) = (vec![0; 100_000], bytes);
                while left > 0 {
                    let n = peer.read(&mut buffer).expect("bytes");
                    peer.write_all(&buffer[..n]).expect("sent");
                    left -= n;
                }
                peer.conn.send_close_notify();
                peer.flush().expect("sent");
                peer.read_to_end(&mut Vec::new()).expect("close_notify")
            });
            let (mut random, mut sent, mut seen) =
                (Random::new(1), Pattern::new(4), Pattern::new(4));
            let mut buffer = vec![0; 70_000];
            block_on(async {
                let mut left = bytes;
                while left > 0 {
                    let piece = sent.next(random.length(100_000).min(left)).to_vec();
                    left -= piece.len();
                    let (first, second) = piece.split_at(piece.len() / 3);
                    let pieces = [IoSlice::new(first), IoSlice::new(second)];
                    let taken = tls.write_vectored(&pieces).await?;
                    AsyncWriteExt::write_all(&mut tls, &piece[taken..]).await?;
                    // No flush: they go all the same.
                    let mut unseen = piece.len();
                    while unseen > 0 {
                        let room = random.length(buffer.len());
                        let n = AsyncReadExt::read(&mut tls, &mut buffer[..room]).await?;
                        assert!(n > 0 && seen.matches(&buffer[..n]), "other bytes");
                        unseen -= n;
                    }
                }
                assert_eq!(AsyncReadExt::read(&mut tls, &mut buffer).await?, 0);
                close(&mut tls).await
            })
            .expect("an echo");
            assert_eq!(echoes.join().expect("no panic"), 0);
        }

        fn lines_are_read_without_a_copy(setup: Setup) {
            let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
            peer.write_all(b"first\nsecond\nrest").expect("sent");
            peer.conn.send_close_notify();
            peer.flush().expect("sent");
            block_on(async {
                let mut line = String::new();
                for expected in ["first\n", "second\n", "rest", ""] {
                    line.clear();
                    tls.read_line(&mut line).await?;
                    assert_eq!(line, expected);
                }
                io::Result::Ok(())
            })
            .expect("lines");
        }

        fn a_cut_is_an_error(setup: Setup) {
            let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
            peer.write_all(b"some").expect("sent");
            peer.sock.shutdown(Shutdown::Write);
            let mut seen = Vec::new();
            let error = block_on(tls.read_to_end(&mut seen)).expect_err("a cut");
            assert_eq!((error.kind(), &seen[..]), (ErrorKind::UnexpectedEof, &b"some"[..]));
        }

        /// Reads and writes that are dropped after one poll.
        fn dropped_futures_lose_nothing(setup: Setup) {
            let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
            let bytes = scaled(1 << 20);
            let echoes = thread::spawn(move || {
                let (mut buffer, mut left) = (vec![0; 10_000], bytes);
                while left > 0 {
                    let n = peer.read(&mut buffer).expect("bytes");
                    peer.write_all(&buffer[..n]).expect("sent");
                    left -= n;
                }
                peer
            });
            let (mut random, mut sent, mut seen) =
                (Random::new(8), Pattern::new(6), Pattern::new(6));
            let (mut unsent, mut unseen, mut buffer) = (bytes, bytes, vec![0; 50_000]);
            block_on(async {
                // A wait that is left behind must not time out for one that comes later.
                tls.control().set_read_timeout(Some(Duration::from_secs(20)));
                while unseen > 0 {
                    let mut looked = sent.clone();
                    let piece = looked.next(random.length(30_000).min(unsent));
                    if !piece.is_empty() {
                        let written = poll_once(pin!(AsyncWriteExt::write(&mut tls, piece)));
                        if let Poll::Ready(n) = written {
                            let n = n?;
                            sent.next(n);
                            unsent -= n;
                        }
                    }
                    let room = random.length(buffer.len());
                    let read = poll_once(pin!(AsyncReadExt::read(&mut tls, &mut buffer[..room])));
                    match read {
                        Poll::Ready(n) => {
                            let n = n?;
                            assert!(seen.matches(&buffer[..n]), "other bytes");
                            unseen -= n;
                        }
                        Poll::Pending => sleep(Duration::from_micros(100)).await,
                    }
                }
                io::Result::Ok(())
            })
            .expect("an echo");
            drop(echoes.join().expect("no panic"));
        }

        on_every_setup!(
            every_byte_goes_both_ways,
            lines_are_read_without_a_copy,
            a_cut_is_an_error,
            dropped_futures_lose_nothing,
        );
    };
}

mod by_tokio {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

    async fn close(tls: &mut TlsConnection) -> io::Result<()> {
        tls.shutdown().await
    }

    bodies!();
}

mod by_futures {
    use super::*;
    use futures::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

    async fn close(tls: &mut TlsConnection) -> io::Result<()> {
        AsyncWriteExt::close(tls).await
    }

    bodies!();
}
