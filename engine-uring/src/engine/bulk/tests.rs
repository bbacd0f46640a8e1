//! Streams that carry large messages, by themselves and with small ones between.

use std::io::Write;
use std::net::TcpStream;
use std::thread;

use duopoll_core::Deregister;

use super::super::tests::{Harness, TIERS, listener};
use super::*;
use crate::socket::Op;

/// The byte at a place of what a peer sends.
fn byte(peer: usize, at: usize) -> u8 {
    (at * 31 + at / 251 + peer * 7) as u8
}

fn bytes(peer: usize, start: usize, count: usize) -> Vec<u8> {
    (start..start + count).map(|at| byte(peer, at)).collect()
}

fn is_bulk(harness: &mut Harness, token: Token) -> bool {
    harness.uring.sockets.get_mut(token).is_some_and(|socket| socket.bulk > 0)
}

/// Sends so many bytes from each at once, and has all of them received.
fn flood(harness: &mut Harness, streams: &[(Token, TcpStream)], start: usize, count: usize) {
    thread::scope(|scope| {
        for (peer, (_, stream)) in streams.iter().enumerate() {
            let mut stream = stream;
            scope.spawn(move || stream.write_all(&bytes(peer, start, count)).expect("sent"));
        }
        for (token, _) in streams {
            harness.until_received(*token, start + count);
        }
    });
}

/// Streams of which at least one has become polled, and how many bytes have come from each of them.
fn bulk_streams(harness: &mut Harness, count: usize) -> (Vec<(Token, TcpStream)>, usize) {
    let listener = listener();
    let streams: Vec<_> = (0..count).map(|_| harness.stream(&listener)).collect();
    let mut sent = 0;
    // Where all of it comes in small pieces nothing changes: what has come together is a matter of chance.
    while !streams.iter().any(|(token, _)| is_bulk(harness, *token)) {
        assert!(sent < 64 << 20, "nothing large has come at once");
        flood(harness, &streams, sent, 512 << 10);
        sent += 512 << 10;
    }
    (streams, sent)
}

fn check(harness: &mut Harness, streams: &[(Token, TcpStream)], count: usize) {
    for (peer, (token, _)) in streams.iter().enumerate() {
        assert!(
            harness.seen(*token).received == bytes(peer, 0, count),
            "others, or in another order"
        );
    }
}

#[test]
fn streams_with_large_messages_are_polled_until_their_messages_are_small() {
    for tier in TIERS {
        let mut harness = Harness::new(tier);
        harness.lend(64 << 10);
        if !harness.has_multishot() {
            // Each receive brings its own memory there, after a poll.
            continue;
        }
        let (mut streams, mut sent) = bulk_streams(&mut harness, 4);
        for _ in 0..usize::from(SMALL_MAX) * 2 {
            flood(&mut harness, &streams, sent, 100);
            sent += 100;
        }
        harness.turn();
        for (token, _) in &streams {
            assert!(!is_bulk(&mut harness, *token), "{tier}: small ones, one by one");
            let socket = harness.uring.sockets.get_mut(*token).expect("registered");
            assert_eq!(socket.inbound, Some(Op::ReceiveMulti), "{tier}");
        }
        check(&mut harness, &streams, sent);
        let (token, peer) = streams.remove(0);
        drop(peer);
        harness.until("its end", |harness| harness.seen(token).end.is_some());
    }
}

#[test]
fn nothing_is_lost_of_messages_of_all_sizes_whatever_is_lent() {
    const STREAMS: usize = 6;
    // Lengths on both sides of what is large, and of what a turn takes.
    const SIZES: [usize; 9] = [1, 100_000, 48 << 10, 300_000, 7, 65_536, 65_537, 20_000, 1 << 20];
    for tier in TIERS {
        for lent in [64, 4 << 10, 64 << 10] {
            let mut harness = Harness::new(tier);
            harness.lend(lent);
            let listener = listener();
            let streams: Vec<_> = (0..STREAMS).map(|_| harness.stream(&listener)).collect();
            let mut sent = 0;
            for size in SIZES.into_iter().chain(SIZES).chain([3; 20]).chain(SIZES) {
                flood(&mut harness, &streams, sent, size);
                sent += size;
            }
            check(&mut harness, &streams, sent);
            for (token, peer) in streams {
                drop(peer);
                harness.until("its end", |harness| harness.seen(token).end.is_some());
            }
        }
    }
}

#[test]
fn a_polled_stream_stops_and_goes_on_when_it_is_told_to() {
    for tier in TIERS {
        let mut harness = Harness::new(tier);
        harness.lend(64 << 10);
        let (streams, mut sent) = match harness.has_multishot() {
            true => bulk_streams(&mut harness, 2),
            false => continue,
        };
        for (token, _) in &streams {
            harness.seen(*token).stops = true;
        }
        thread::scope(|scope| {
            for (peer, (_, stream)) in streams.iter().enumerate() {
                let mut stream = stream;
                scope.spawn(move || stream.write_all(&bytes(peer, sent, 2 << 20)).expect("sent"));
            }
            sent += 2 << 20;
            for (token, _) in &streams {
                while harness.seen(*token).received.len() < sent {
                    let before = harness.seen(*token).received.len();
                    harness.receive(*token);
                    harness
                        .until("some more", |harness| harness.seen(*token).received.len() > before);
                    if is_bulk(&mut harness, *token) {
                        // It has said stop, so nothing more comes.
                        let stopped = harness.seen(*token).received.len();
                        (0..3).for_each(|_| harness.turn());
                        assert_eq!(harness.seen(*token).received.len(), stopped, "{tier}");
                    }
                }
            }
        });
        check(&mut harness, &streams, sent);
    }
}

#[test]
fn a_polled_stream_that_is_gone_is_not_received_from() {
    for tier in TIERS {
        for how in [Deregister::Close, Deregister::Abort, Deregister::Leave, Deregister::Shutdown] {
            let mut harness = Harness::new(tier);
            harness.lend(64 << 10);
            if !harness.has_multishot() {
                continue;
            }
            let (streams, sent) = bulk_streams(&mut harness, 3);
            for (peer, (_, stream)) in streams.iter().enumerate() {
                stream.set_nonblocking(true).expect("a socket");
                let _ = { stream }.write(&bytes(peer, sent, 256 << 10));
            }
            harness.complete();
            // One is polled and listed, or its poll has just completed; it goes at this moment.
            for (token, _) in &streams {
                harness.uring.read_later(*token);
                harness.deregister(*token, how);
            }
            harness.until("they are released", |harness| {
                streams.iter().all(|(token, _)| harness.seen(*token).released)
            });
            harness.turn();
            assert!(harness.uring.to_read.is_empty(), "{tier}, {how:?}");
        }
    }
}
