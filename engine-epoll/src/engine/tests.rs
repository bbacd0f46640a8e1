//! Turns of the engine, over sockets that are full before it looks.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use duopoll_core::{Inputs, Lease, Ready, Slice};

use super::*;

/// Takes what comes, and notes how much of it.
struct Recorder {
    room: Box<[u8]>,
    /// Bytes by connection, in the order in which they came.
    received: Vec<(usize, usize)>,
}

// SAFETY: the room is boxed, and receives are over before anything else is asked for.
unsafe impl Operators for Recorder {
    fn inputs(&mut self, _: Token, lease: Lease, vectors: &mut [iovec; 2]) -> Inputs {
        assert_eq!(lease, Lease::UntilAck);
        vectors[0] = iovec { iov_base: self.room.as_mut_ptr().cast(), iov_len: self.room.len() };
        Inputs::Vectors(1)
    }

    unsafe fn input_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        match (result, self.received.last_mut()) {
            (Ok(n), Some((last, bytes))) if *last == token.index() => *bytes += n,
            (Ok(n), _) => self.received.push((token.index(), n)),
            (Err(error), _) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        Next::More
    }

    fn donate(&mut self, _: Token, _: Slice) -> Next {
        unreachable!("the engine has no buffers of its own")
    }

    fn copy_in(&mut self, _: Token, _: &[u8]) -> Option<Next> {
        unreachable!("the engine has no buffers of its own")
    }

    fn outputs(&mut self, _: Token, _: &mut [iovec; SEND_VECTORS_MAX]) -> Outputs {
        Outputs::Nothing
    }

    fn output_ack(&mut self, _: Token, _: io::Result<usize>) -> Next {
        unreachable!("nothing is sent")
    }

    #[cfg(feature = "zerocopy")]
    fn zerocopy_ack(&mut self, _: Token, _: io::Result<usize>) -> Next {
        unreachable!("nothing is sent")
    }

    #[cfg(feature = "zerocopy")]
    fn zerocopy_notice(&mut self, _: Token, _: u32, _: u32, _: bool) {
        unreachable!("nothing is sent")
    }

    fn connected(&mut self, _: Token, _: io::Result<()>) {
        unreachable!("nothing connects")
    }

    fn accepted(&mut self, _: Token, _: io::Result<OwnedFd>) -> Next {
        unreachable!("nothing listens")
    }

    fn ready(&mut self, _: Token, _: Ready) -> Next {
        Next::More
    }

    unsafe fn released(&mut self, _: Token) {}
}

/// An engine with so many connections, on each of which so many bytes wait. Their peers live on.
fn full(connections: u32, bytes: usize) -> (Epoll, Recorder, Vec<[UnixStream; 2]>) {
    let mut engine = Epoll::new().expect("epoll");
    let mut recorder = Recorder { room: vec![0; 1 << 20].into(), received: Vec::new() };
    let pairs = (0..connections)
        .map(|index| {
            let (mut peer, own) = UnixStream::pair().expect("a pair");
            own.set_nonblocking(true).expect("a socket");
            peer.write_all(&vec![7; bytes]).expect("room in the socket");
            let token = Token::new(index, 0);
            // SAFETY: the pair outlives the engine, and each has a token of its own.
            unsafe { engine.register(token, own.as_raw_fd(), Kind::Stream, &mut recorder) }
                .expect("registered");
            [peer, own]
        })
        .collect();
    (engine, recorder, pairs)
}

#[test]
fn many_bytes_end_a_turn_and_what_is_left_comes_before_new_events() {
    let bytes = TURN_BYTES as usize;
    let (mut engine, mut recorder, _pairs) = full(3, bytes);
    for turn in 1..=3 {
        engine.wait(Some(Duration::ZERO), &mut recorder).expect("a turn");
        assert_eq!(recorder.received.len(), turn, "a connection a turn");
        assert_eq!(engine.stats().waits, 1);
    }
    assert_eq!(recorder.received, [0, 1, 2].map(|index| (index, bytes)));
}

#[test]
fn small_messages_of_many_connections_come_in_one_turn() {
    let (mut engine, mut recorder, _pairs) = full(EVENTS_PER_TURN as u32, 100);
    engine.wait(Some(Duration::ZERO), &mut recorder).expect("a turn");
    assert_eq!(recorder.received.len(), EVENTS_PER_TURN);
}
