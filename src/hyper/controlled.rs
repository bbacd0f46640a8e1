//! What HTTP is served on, and how it begins.

use std::task::{Context, Poll, ready};
use std::{io, mem};

use bytes::Bytes;

use crate::connection::Connection;
#[cfg(feature = "rustls")]
use crate::tls::TlsConnection;
use crate::{Control, LinkBuffer};

/// What a client of HTTP/2 begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is, or lies on, a connection of this crate, and can be [served](super::Http::serve).
pub trait Controlled {
    /// The connection's handle.
    fn control(&self) -> Control;

    /// What has been received and not been read.
    fn input(&mut self) -> &mut LinkBuffer;

    /// Waits for more than there is in [`input`](Controlled::input). False at the end, and while the server shuts down if nothing is
    /// there: that is a moment between two requests.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>>;

    /// Whether all that hyper reads comes from [`input`](Controlled::input) as it is, so that it can be put back there, and it is known
    /// when hyper has written all. Only the connections of this crate know.
    #[doc(hidden)]
    fn gives_back(&self) -> bool {
        false
    }
}

impl Controlled for Connection {
    fn control(&self) -> Control {
        Connection::control(self)
    }

    fn input(&mut self) -> &mut LinkBuffer {
        Connection::input_mut(self)
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let seen = self.input().len();
        self.reader_mut().poll_request(cx, seen)
    }

    fn gives_back(&self) -> bool {
        true
    }
}

#[cfg(feature = "rustls")]
impl Controlled for TlsConnection {
    fn control(&self) -> Control {
        TlsConnection::control(self)
    }

    fn input(&mut self) -> &mut LinkBuffer {
        TlsConnection::input_mut(self)
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.input().is_empty() { self.poll_request(cx) } else { self.poll_more(cx) }
    }

    fn gives_back(&self) -> bool {
        true
    }
}

/// What a client has begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// It need not be served: it has said nothing, and has gone, or the server shuts down.
    Gone,
    /// Something else than HTTP/2's preface.
    Http1,
    /// HTTP/2's preface.
    Http2,
}

/// Waits until the client has said which version of HTTP it speaks, or will not say it any more. Nothing is taken of what has come.
pub(super) fn poll_begun(io: &mut impl Controlled, cx: &mut Context<'_>) -> Poll<Begun> {
    loop {
        let input = io.input();
        if let Some(begun) = begun(input) {
            return Poll::Ready(begun);
        }
        let seen = input.len();
        match ready!(io.poll_input(cx)) {
            Ok(true) => {}
            Ok(false) if seen == 0 => return Poll::Ready(Begun::Gone),
            // For whoever reads it.
            Ok(false) | Err(_) => return Poll::Ready(Begun::Http1),
        }
    }
}

/// As [`poll_begun`], for the next request of a client that speaks HTTP/1.
pub(super) fn poll_next(io: &mut impl Controlled, cx: &mut Context<'_>) -> Poll<Begun> {
    if !io.input().is_empty() {
        return Poll::Ready(Begun::Http1);
    }
    match ready!(io.poll_input(cx)) {
        Ok(false) => Poll::Ready(Begun::Gone),
        // An error is for whoever reads it.
        Ok(true) | Err(_) => Poll::Ready(Begun::Http1),
    }
}

/// Gives back what was read of `io` and not used.
pub(super) fn unread(io: &mut impl Controlled, read: Bytes) {
    if !read.is_empty() {
        let input = io.input();
        let mut rest = mem::take(input);
        input.push(read);
        input.append(&mut rest);
    }
}

/// What it is, unless it is a part of HTTP/2's preface.
fn begun(input: &LinkBuffer) -> Option<Begun> {
    let mut front = [0; PREFACE.len()];
    let n = input.peek_to(&mut front);
    if front[..n] != PREFACE[..n] {
        return Some(Begun::Http1);
    }
    (n == PREFACE.len()).then_some(Begun::Http2)
}
