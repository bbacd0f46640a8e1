//! The sending half of a connection.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::control::Control;
use super::lifecycle::Half;
use super::shared::Shared;
use super::wait::Owner;
use crate::buffer::BufferSeam;
use crate::buffer::LinkBuffer;
use crate::memory::Slice;
use crate::syscalls;
use crate::thread::{self, Blocks};
use crate::trace;

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
/// [`NotConnected`](io::ErrorKind::NotConnected) if something is staged after this side has closed or finished;
/// [`TimedOut`](io::ErrorKind::TimedOut) without an errno if a wait was over time; `ECONNABORTED` if it was aborted.
///
/// # Threads
/// A writer is `Send`. On its poller's own thread a flush costs one uncontended lock; from another, a wake-up of
/// the poller too, if it sleeps.
pub struct Writer {
    shared: Arc<Shared>,
    staged: LinkBuffer,
    /// The last poll has left a wait behind.
    waiting: bool,
    /// The kernel had no room for what was sent directly: the engine waits for it, with the last of what was taken.
    blocked: bool,
    /// The turn in which so many [pages](DIRECT_PAGE_BYTES) were sent directly: in few bytes, since every connection has them.
    direct: (u16, u16),
}

/// What is copied goes into blocks of at most so many bytes.
const COPIED_BYTES_MAX: usize = 64 << 10;
/// From so many bytes on, what was to be copied is sent as it lies instead.
const DIRECT_BYTES_MIN: usize = 32 << 10;
/// What they are counted in: of `u16::MAX` of them are 256 MiB.
const DIRECT_PAGE_BYTES: usize = 4 << 10;
/// Pieces of one send.
const DIRECT_PIECES_MAX: usize = 64;
/// So much is taken at once, however low the watermark is.
const PIECE_BYTES: usize = 4 << 10;

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Writer {
        Writer { shared, staged: LinkBuffer::new(), waiting: false, blocked: false, direct: (0, 0) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stages a copy of `bytes`.
    ///
    /// # Errors
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory); nothing is staged then.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer_mut().write(bytes)?;
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
        Ok(self.buffer_mut().reserve(n)?)
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
    pub fn buffer_mut(&mut self) -> &mut LinkBuffer {
        // The block that the last reply on this thread did not fill is still in the cache.
        if self.staged.tail_mut().is_none() {
            *self.staged.tail_mut() = Blocks::take_written();
        }
        &mut self.staged
    }

    /// Bytes staged and not flushed.
    pub fn staged_len(&self) -> usize {
        self.staged.len() + self.staged.reserved_len()
    }

    /// Bytes flushed that the kernel has not taken yet, as far as its poller knows: on another thread, as of the last call.
    pub fn unsent_len(&self) -> usize {
        let unsent = self.shared.life().unsent;
        let mailbox = self.shared.mailbox();
        if unsent > 0 && !mailbox.is_local() {
            mailbox.wake();
        }
        unsent
    }

    /// Hands over what is staged, and waits for nothing: it goes out with the end of the poller's turn, or at once if it is
    /// much. What is unsent has no bound then but the caller's sense; see [`unsent_len`](Writer::unsent_len).
    ///
    /// # Errors
    /// See [`Writer`]; what is staged stays staged then.
    pub fn submit(&mut self) -> io::Result<()> {
        let result = self.shared.submit(&mut self.staged);
        self.put_block();
        Ok(result?)
    }

    /// Hands over what is staged, and waits while more is unsent than the connection's watermark allows.
    ///
    /// Polls that follow each other are one wait, with one timeout, until there is a result or
    /// [`end_wait`](Writer::end_wait) is called. One that is left behind expires by itself: it is forgotten unless it is
    /// taken up within 20 milliseconds, and the next poll begins a wait of its own.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx, self.watermarks(), Owner::Poll)
    }

    /// Hands over what is staged, and waits until the kernel has taken all of it. The peer may not have received it
    /// yet.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx, (0, 0), Owner::Poll)
    }

    /// Hands over a copy of `pieces`, as much of it as there is room for below the watermark, and says how much that is: at
    /// least a byte, unless there is none. Waits while there is no room. What is staged goes first. From 32 KiB on, if nothing is
    /// unsent, the kernel copies them itself, at once.
    ///
    /// Polls that follow each other are one wait, as with [`poll_flush`](Writer::poll_flush).
    ///
    /// # Errors
    /// See [`Writer`].
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let is_much = bytes >= DIRECT_BYTES_MIN;
        let marks = if is_much && self.blocked { (0, 0) } else { self.watermarks() };
        ready!(self.poll_send(cx, marks, Owner::Poll))?;
        let (mut taken, mut room) = (0, self.room());
        let sent = if is_much { self.send_directly(pieces)? } else { None };
        if let Some(sent) = sent {
            self.blocked = sent < bytes;
            (taken, room) = (sent, room.min(COPIED_BYTES_MAX));
        }
        // In blocks of a size that is pooled: one for the whole of a large piece would be mapped and unmapped each time.
        let mut skipped = taken;
        'copying: for piece in pieces {
            let rest = &piece[skipped.min(piece.len())..];
            skipped -= piece.len() - rest.len();
            for part in rest.chunks(COPIED_BYTES_MAX) {
                let n = part.len().min(room);
                if n == 0 {
                    break 'copying;
                }
                match self.write(&part[..n]) {
                    Ok(()) => (room, taken) = (room - n, taken + n),
                    // What was taken is on its way.
                    Err(_) if taken > 0 => break 'copying,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        }
        self.submit()?;
        Poll::Ready(Ok(taken))
    }

    /// Sends what the kernel takes, and says how much that is; none if it has to go by the engine.
    fn send_directly(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        // SAFETY: a half lets go when it is dropped.
        let Some(socket) = (unsafe { self.shared.socket() }) else { return Ok(None) };
        if !self.shared.mailbox().is_local() || !self.shared.life().may_send_directly() {
            return Ok(None);
        }
        // Others have their turn, too: one that always finds room would go on for ever.
        let turn = thread::turn() as u16;
        let before = if self.direct.0 == turn { self.direct.1 } else { 0 };
        if usize::from(before) * DIRECT_PAGE_BYTES >= self.shared.output_high_bytes() {
            return Ok(Some(0));
        }
        let pieces = &pieces[..pieces.len().min(DIRECT_PIECES_MAX)];
        let result = syscalls::send(socket, pieces);
        let sent = match &result {
            Ok(sent) => *sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.shared.fail_sending(error);
                result?
            }
        };
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        thread::count_direct(sent, sent < bytes);
        let pages = u16::try_from(sent.div_ceil(DIRECT_PAGE_BYTES)).unwrap_or(u16::MAX);
        self.direct = (turn, before.saturating_add(pages));
        self.shared.sent_directly(sent);
        Ok(Some(sent))
    }

    /// For layers above: they have handed over all that there is.
    #[doc(hidden)]
    pub fn flushed(&self) {
        self.shared.flushed();
    }

    /// For layers above: how much may be handed over below the watermark, in bytes, and at least a little.
    #[doc(hidden)]
    pub fn room(&self) -> usize {
        let unsent = self.shared.life().unsent;
        self.shared.output_high_bytes().saturating_sub(unsent).max(PIECE_BYTES)
    }

    /// Ends the sending direction, as [`finish`](Writer::finish) does, and waits until the kernel has taken all that was sent.
    ///
    /// # Errors
    /// See [`Writer`].
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        self.poll_drain(cx)
    }

    fn watermarks(&self) -> (usize, usize) {
        let high = self.shared.output_high_bytes();
        (high, high / 2)
    }

    /// Hands over what is staged. Waits if more than the first mark is unsent, until no more than the second is.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        marks: (usize, usize),
        owner: Owner,
    ) -> Poll<io::Result<()>> {
        let staged = &mut self.staged;
        if self.shared.flush_at_once(staged, marks.0) {
            if mem::replace(&mut self.waiting, false) && marks.0 > 0 {
                trace::is_held_up(&*self.shared, false);
            }
            self.put_block();
            return Poll::Ready(Ok(()));
        }
        // A flush seldom waits, and a wait that is under way mostly ends with the next poll.
        let result = self.shared.poll(cx, false, &mut 0, |life, offer, clock| {
            life.flush(staged, marks, owner, offer, clock)
        });
        let waited = mem::replace(&mut self.waiting, result.is_pending());
        if waited != self.waiting && marks.0 > 0 {
            trace::is_held_up(&*self.shared, self.waiting);
        }
        self.put_block();
        result.map_err(io::Error::from)
    }

    /// Leaves the block that was not filled for the next writer.
    #[inline]
    fn put_block(&mut self) {
        if let Some(tail) = self.staged.tail_mut().take() {
            Blocks::put_written(tail);
        }
    }

    /// Hands over what is staged, and waits while more is unsent than the connection's watermark allows, so that a
    /// peer that does not read costs bounded memory. What is handed over goes out with the end of the poller's turn, or
    /// at once if it is much. It does not wait until everything is sent: before a program ends, [`drain`](Writer::drain) does.
    ///
    /// # Errors
    /// See [`Writer`].
    pub async fn flush(&mut self) -> io::Result<()> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_send(cx, waiting.0.watermarks(), Owner::Future)).await
    }

    /// Hands over what is staged, and waits until the kernel has taken all of it: what a program waits for before it
    /// exits. What the kernel has taken it sends, whatever becomes of the process.
    ///
    /// # Errors
    /// See [`Writer`].
    pub async fn drain(&mut self) -> io::Result<()> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_send(cx, (0, 0), Owner::Future)).await
    }

    /// Ends the sending direction: what was flushed and what is staged goes out, then the FIN. Receiving goes on. Harmless if
    /// it has ended already; what is staged is dropped then.
    pub fn finish(&mut self) {
        self.shared.finish(Some(&mut self.staged));
        self.staged.clear();
    }

    /// A handle on the connection, for timeouts and for ending it from elsewhere.
    pub fn control(&self) -> Control {
        Control::new(self.shared.clone())
    }

    /// Forgets the wait that a poll has left behind, and with it its waker and its timeout.
    pub fn end_wait(&mut self) {
        if std::mem::take(&mut self.waiting) {
            let unused = self.shared.life().end_writing();
            drop(unused);
        }
    }

    /// Closes the connection, both halves: what was flushed and what is staged goes out, then the FIN; what arrives is
    /// dropped. Whoever waits for bytes is woken with an error. Harmless if it is closed already; what is staged is dropped
    /// then.
    pub fn close(&mut self) {
        self.shared.close(Some(&mut self.staged));
        self.staged.clear();
    }

    /// A number that no other connection of this process has.
    pub fn id(&self) -> u64 {
        self.shared.id()
    }

    /// The address of the other end of a TCP connection, also when it is over; see
    /// [`Control::peer_addr`](super::Control::peer_addr).
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.shared.life().peer.get()
    }

    /// The socket, for options and addresses. None under a simulated engine.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.shared.expose();
        // SAFETY: a half lets go when it is dropped.
        unsafe { self.shared.socket() }
    }
}

/// A wait of a future: begun with it, and dropped with it.
struct Waiting<'a>(&'a mut Writer);

impl Waiting<'_> {
    fn new(writer: &mut Writer) -> Waiting<'_> {
        // Somebody may have polled and gone.
        writer.end_wait();
        Waiting(writer)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.end_wait();
    }
}

/// What whoever has begun to connect does with a [`Writer`], before its users have it.
pub trait WriterSeam {
    /// Waits until the connection is established, where [`Driver::connect`](crate::Driver::connect) has begun one.
    /// Subject to the deadline for writing, and not to its timeout, which is for what is sent.
    ///
    /// # Errors
    /// The errno of the connect, for instance `ECONNREFUSED`; [`TimedOut`](io::ErrorKind::TimedOut).
    fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl WriterSeam for Writer {
    fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.shared.poll(cx, !self.waiting, &mut 0, |life, offer, clock| {
            life.poll_connected(Owner::Poll, offer, clock)
        });
        self.waiting = result.is_pending();
        result.map_err(io::Error::from)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // What is staged may be half a message.
        self.shared.finish(None);
        self.shared.half_gone(Half::Writer);
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
