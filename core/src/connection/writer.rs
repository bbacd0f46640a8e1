//! The sending half of a connection.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Control, Output, Shared, closed, timed_out};
use crate::buffer::LinkBuffer;
use crate::mailbox::{Command, LocalBlocks};
use crate::memory::Slice;

/// From so many bytes on a flush is sent at once, while they are in the cache; less waits for the end of the turn, when
/// the kernel's sending path is walked for all connections in a row.
const SEND_NOW_BYTES: usize = 16 << 10;

/// The sending half of a connection.
///
/// Bytes are staged in a [`LinkBuffer`] of the writer's own, by copy or by ownership, until
/// [`flush`](Writer::flush) hands them over whole; the poller then sends them with as few system calls as the kernel
/// allows. What was not flushed when the writer is dropped is not sent.
///
/// # Cancellation
/// Flushed bytes are the connection's: dropping the future of a flush takes nothing back and sends nothing twice.
///
/// # Errors
/// The errno of the kernel, for instance `EPIPE` or `ECONNRESET`, by the first flush after it was reported;
/// [`NotConnected`](io::ErrorKind::NotConnected) after this side has closed or finished.
///
/// # Threads
/// A writer is `Send`. On its poller's own thread a flush costs one uncontended lock; from another, a wake-up of
/// the poller too, if it sleeps.
pub struct Writer {
    shared: Arc<Shared>,
    staged: LinkBuffer,
    /// The last poll has left a wait behind.
    waiting: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Writer {
        Writer { shared, staged: LinkBuffer::new(), waiting: false }
    }

    /// Stages a copy of `bytes`.
    ///
    /// # Errors
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory); nothing is staged then.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer().write(bytes)?;
        Ok(())
    }

    /// Stages owned bytes, without copying them: a [`Slice`], `Bytes`, `Vec<u8>`, `&'static [u8]`, …
    pub fn push(&mut self, slice: impl Into<Slice>) {
        self.staged.push(slice);
    }

    /// Stages a whole buffer, without copying it; it is empty then.
    pub fn append(&mut self, buffer: &mut LinkBuffer) {
        self.staged.append(buffer);
    }

    /// Room for `n` contiguous bytes; see [`LinkBuffer::reserve`].
    ///
    /// # Errors
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory).
    pub fn reserve(&mut self, n: usize) -> io::Result<&mut [MaybeUninit<u8>]> {
        Ok(self.buffer().reserve(n)?)
    }

    /// Stages the first `n` bytes of the room reserved last.
    ///
    /// # Safety
    /// As for [`LinkBuffer::commit`].
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `n` is more than was reserved.
    pub unsafe fn commit(&mut self, n: usize) -> io::Result<()> {
        // SAFETY: promised by the caller.
        unsafe { self.staged.commit(n)? };
        Ok(())
    }

    /// What is staged: for writing by other means, such as `bytes::BufMut` or `std::fmt::Write`. Whatever is in
    /// it, flushed within the buffer or not, goes out with the next [`flush`](Writer::flush).
    pub fn buffer(&mut self) -> &mut LinkBuffer {
        // The block that the last reply on this thread did not fill is still in the cache.
        if self.staged.tail_mut().is_none() {
            *self.staged.tail_mut() = LocalBlocks::take_written();
        }
        &mut self.staged
    }

    /// Bytes staged and not flushed.
    pub fn staged_len(&self) -> usize {
        self.staged.len() + self.staged.reserved_len()
    }

    /// Bytes flushed that the kernel has not taken yet, as far as its poller knows: on another thread, as of the last call.
    pub fn unsent_len(&self) -> usize {
        let unsent = self.shared.state().unsent;
        if unsent > 0 && !self.shared.mailbox.is_local() {
            self.shared.mailbox.wake();
        }
        unsent
    }

    /// Hands over what is staged, and waits while more is unsent than the connection's watermark allows.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx, self.shared.output_high_bytes, self.shared.output_high_bytes / 2)
    }

    /// Hands over what is staged, and waits until the kernel has taken all of it. The peer may not have received it
    /// yet.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx, 0, 0)
    }

    /// Waits until the connection is established, where [`Driver::connect`](crate::Driver::connect) has begun one.
    /// Subject to the timeout and the deadline for writing.
    ///
    /// # Errors
    /// The errno of the connect, for instance `ECONNREFUSED`; [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &*self.shared;
        let mut arm = false;
        let mut state = shared.state();
        let result = match state.output {
            Output::Failed(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
            Output::Connecting => {
                if state.writing.go_on(|| shared.mailbox.clock().now()) {
                    state.wake_at = 0;
                    state.writer = Some(cx.waker().clone());
                    arm = state.writing.until() < state.armed;
                    Poll::Pending
                } else {
                    state.writer = None;
                    Poll::Ready(Err(timed_out()))
                }
            }
            Output::Open | Output::Finishing | Output::Finished => {
                state.writing.end();
                Poll::Ready(Ok(()))
            }
        };
        drop(state);
        self.waiting = result.is_pending();
        if arm {
            shared.mailbox.post(Command::Arm(shared.token));
        }
        result
    }

    /// Hands over what is staged. Waits if more than `high` bytes are unsent, until no more than `low` are.
    fn poll_send(&mut self, cx: &mut Context<'_>, high: usize, low: usize) -> Poll<io::Result<()>> {
        let shared = &*self.shared;
        let staged = self.staged.len() + self.staged.reserved_len();
        let (mut post, mut much, mut arm) = (false, false, false);
        let mut state = shared.state();
        let result = match state.output {
            Output::Failed(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
            Output::Finishing | Output::Finished if staged > 0 => Poll::Ready(Err(closed())),
            Output::Connecting if state.finish_connected && staged > 0 => {
                Poll::Ready(Err(closed()))
            }
            Output::Open | Output::Connecting | Output::Finishing | Output::Finished => {
                if staged > 0 {
                    self.staged.drain_into(&mut state.outbox);
                    state.unsent += staged;
                    post = !std::mem::replace(&mut state.send_posted, true);
                }
                much = state.unsent >= SEND_NOW_BYTES;
                // A wait that has begun ends at the low mark, so that it is not for a few bytes only.
                let limit = if state.writer.is_some() { low } else { high };
                if state.unsent <= limit {
                    state.writer = None;
                    state.writing.end();
                    Poll::Ready(Ok(()))
                } else if state.writing.go_on(|| shared.mailbox.clock().now()) {
                    state.wake_at = low;
                    // Also if nothing was staged, for the engine to know that somebody waits.
                    post |= state.writer.is_none();
                    if !state.writer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                        state.writer = Some(cx.waker().clone());
                    }
                    arm = state.writing.until() < state.armed;
                    Poll::Pending
                } else {
                    state.writer = None;
                    Poll::Ready(Err(timed_out()))
                }
            }
        };
        drop(state);
        self.waiting = result.is_pending();
        if let Some(tail) = self.staged.tail_mut().take() {
            LocalBlocks::put_written(tail);
        }
        if post {
            let token = shared.token;
            shared.mailbox.post(if much { Command::SendNow(token) } else { Command::Send(token) });
        }
        if arm {
            shared.mailbox.post(Command::Arm(shared.token));
        }
        result
    }

    /// Hands over what is staged, and waits while more is unsent than the connection's watermark allows, so that a
    /// peer that does not read costs bounded memory.
    ///
    /// # Errors
    /// See [`Writer`].
    pub async fn flush(&mut self) -> io::Result<()> {
        let waiting = Waiting(self);
        poll_fn(|cx| waiting.0.poll_flush(cx)).await
    }

    /// Hands over what is staged, and waits until the kernel has taken all of it.
    ///
    /// # Errors
    /// See [`Writer`].
    pub async fn drain(&mut self) -> io::Result<()> {
        let waiting = Waiting(self);
        poll_fn(|cx| waiting.0.poll_drain(cx)).await
    }

    /// Ends the sending direction: what was flushed goes out, then the FIN. Receiving goes on. What is staged and
    /// not flushed is dropped. Harmless if it has ended already.
    pub fn finish(&mut self) {
        self.staged.clear();
        let post = {
            let mut state = self.shared.state();
            let open = state.output == Output::Open;
            match state.output {
                Output::Open => state.output = Output::Finishing,
                Output::Connecting => state.finish_connected = true,
                _ => {}
            }
            open && !std::mem::replace(&mut state.send_posted, true)
        };
        if post {
            self.shared.mailbox.post(Command::Send(self.shared.token));
        }
    }

    /// A handle on the connection, for timeouts and for ending it from elsewhere.
    pub fn control(&self) -> Control {
        Control::new(self.shared.clone())
    }

    /// Forgets the wait that a poll has left behind, and with it its waker and its timeout.
    pub fn end_wait(&mut self) {
        if std::mem::take(&mut self.waiting) {
            let mut state = self.shared.state();
            state.writer = None;
            state.writing.end();
        }
    }

    /// Closes the connection; see [`Reader::close`](super::Reader::close).
    pub fn close(&self) {
        self.shared.close();
    }

    /// The socket, for options and addresses. None under a simulated engine.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: a half lets go when it is dropped.
        unsafe { self.shared.socket() }
    }
}

/// A wait of a future: dropped with it.
struct Waiting<'a>(&'a mut Writer);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.end_wait();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
        self.shared.half_gone(|state| {
            state.writer_gone = true;
            state.writer = None;
        });
        // SAFETY: once, and last.
        unsafe { self.shared.let_go() };
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("connection", &self.shared)
            .field("staged_bytes", &self.staged_len())
            .finish()
    }
}
