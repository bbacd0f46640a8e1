//! Connections that send a byte a second each, evenly spread over the second, beside those that are measured.
//!
//! Their echoes are received as they come. A run fails if one is missing in the end: a server that leaves slow senders
//! aside would otherwise look good.

use std::io;
use std::os::fd::AsFd;

use libc::{EPOLLIN, EPOLLRDHUP};

use super::Stream;
use crate::sys::{self, Epoll};

/// What each of them sends after the other.
const BYTE: u8 = b's';
const INTERVAL_NS: u64 = 1_000_000_000;
/// How long the last echoes may take.
const PATIENCE_NS: u64 = 2_000_000_000;

pub(super) struct Slow {
    sockets: Vec<Stream>,
    /// Token of the first one.
    first: u64,
    start_ns: u64,
    sent: u64,
    received: u64,
}

impl Slow {
    pub(super) fn new(epoll: &Epoll, sockets: Vec<Stream>, first: u64) -> io::Result<Slow> {
        for (token, socket) in (first..).zip(&sockets) {
            epoll.add(socket.as_fd(), EPOLLIN | EPOLLRDHUP, token)?;
        }
        Ok(Slow { sockets, first, start_ns: 0, sent: 0, received: 0 })
    }

    pub(super) fn start(&mut self, now_ns: u64) {
        self.start_ns = now_ns;
    }

    /// Sends the bytes that are due.
    #[inline]
    pub(super) fn send_due(&mut self, now_ns: u64) -> io::Result<()> {
        let count = self.sockets.len() as u64;
        while count > 0 && self.start_ns + self.sent * INTERVAL_NS / count <= now_ns {
            let socket = &mut self.sockets[(self.sent % count) as usize];
            socket.send(&[BYTE])?;
            self.sent += 1;
        }
        Ok(())
    }

    /// Receives what has come for a token; false if the token is not of a slow sender.
    #[inline]
    pub(super) fn receive(&mut self, token: u64) -> io::Result<bool> {
        let Some(socket) =
            token.checked_sub(self.first).and_then(|index| self.sockets.get_mut(index as usize))
        else {
            return Ok(false);
        };
        let mut buffer = [0; 64];
        match socket.recv(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) if buffer[..received].iter().all(|byte| *byte == BYTE) => {
                self.received += received as u64;
            }
            Ok(_) => return Err(invalid("the echo of a slow sender differs".into())),
            Err(error) if sys::would_block(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Waits for the last echoes, and returns how many bytes went there and back.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        let deadline_ns = sys::now_ns() + PATIENCE_NS;
        while self.received < self.sent && sys::now_ns() < deadline_ns {
            for token in self.first..self.first + self.sockets.len() as u64 {
                self.receive(token)?;
            }
        }
        if self.received != self.sent {
            let (sent, received) = (self.sent, self.received);
            return Err(invalid(format!("of {sent} bytes of slow senders {received} came back")));
        }
        Ok(self.received)
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
