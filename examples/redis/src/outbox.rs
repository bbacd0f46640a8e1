//! Messages on their way to a client, beside the replies to what it asks.
//!
//! Whoever publishes puts them here, on whichever poller; the client's own handler takes them, before it answers anything
//! that came later. Both happen under the store's lock where they have to be in order with replies.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use duopoll::{LinkBuffer, Slice};

/// What a client that does not read may have waiting, in bytes. It is ended when it has more. The handler may have taken as
/// much again, which its connection has not sent.
pub(crate) const OUTBOX_BYTES_MAX: usize = 8 << 20;
/// Pieces that a client may have waiting, each of which takes memory beside its bytes.
const MESSAGES_MAX: usize = 1 << 20;
/// What each message takes beside its bytes at most, as it is counted.
const MESSAGE_BYTES: usize = OUTBOX_BYTES_MAX / MESSAGES_MAX;
/// Payloads from this size on are shared by all who get them, in bytes.
pub(crate) const SHARED_BYTES_MIN: usize = 4 << 10;

/// A message as it goes over the wire.
pub(crate) struct Message {
    /// All of it, or what stands before the payload. The first byte is for RESP2.
    head: Vec<u8>,
    /// A large payload, without its line end.
    payload: Option<Slice>,
}

impl Message {
    /// `kind`, as many names, and the payload.
    pub(crate) fn new(parts: &[&[u8]], payload: &[u8], shared: Option<&Slice>) -> Message {
        let mut head = Vec::new();
        let number = |head: &mut Vec<u8>, kind: u8, value: usize| {
            head.push(kind);
            head.extend_from_slice(value.to_string().as_bytes());
            head.extend_from_slice(b"\r\n");
        };
        number(&mut head, b'*', parts.len() + 1);
        for part in parts {
            number(&mut head, b'$', part.len());
            head.extend_from_slice(part);
            head.extend_from_slice(b"\r\n");
        }
        number(&mut head, b'$', payload.len());
        if shared.is_none() {
            head.extend_from_slice(payload);
            head.extend_from_slice(b"\r\n");
        }
        Message { head, payload: shared.cloned() }
    }

    /// Puts it behind what is in a buffer.
    ///
    /// # Errors
    /// If there is no memory.
    pub(crate) fn write(&self, buffer: &mut LinkBuffer, resp3: bool) -> std::io::Result<()> {
        match self.head.split_first() {
            Some((_, rest)) if resp3 => {
                buffer.write(b">")?;
                buffer.write(rest)?;
            }
            _ => buffer.write(&self.head)?,
        }
        if let Some(payload) = &self.payload {
            buffer.push(payload.clone());
            buffer.write(b"\r\n")?;
        }
        Ok(())
    }
}

#[derive(Default)]
pub(crate) struct Outbox(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    messages: LinkBuffer,
    count: usize,
    /// Of the handler, while it waits.
    waker: Option<Waker>,
}

/// The client has more waiting than it may.
pub(crate) struct TooMuch;

impl Outbox {
    /// Puts a message behind the others. Returns the handler's waker, if it waits.
    ///
    /// # Errors
    /// If that is too much, or there is no memory; nothing is left in it then.
    pub(crate) fn put(&self, message: &Message, resp3: bool) -> Result<Option<Waker>, TooMuch> {
        let mut waiting = self.lock();
        let written = message.write(&mut waiting.messages, resp3);
        waiting.messages.flush();
        waiting.count += 1;
        let bytes = waiting.messages.len() + waiting.count * MESSAGE_BYTES;
        if written.is_err() || bytes > OUTBOX_BYTES_MAX {
            let unread = std::mem::take(&mut waiting.messages);
            waiting.count = 0;
            drop(waiting);
            drop(unread);
            return Err(TooMuch);
        }
        Ok(waiting.waker.take())
    }

    /// Moves what waits behind what is in a buffer.
    pub(crate) fn take(&self, buffer: &mut LinkBuffer) {
        let mut waiting = self.lock();
        if !waiting.messages.is_empty() {
            buffer.append(&mut waiting.messages);
            waiting.count = 0;
        }
    }

    /// Waits until there is something.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut waiting = self.lock();
        if waiting.messages.is_empty() {
            let before = waiting.waker.replace(waker);
            drop(waiting);
            drop(before);
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
