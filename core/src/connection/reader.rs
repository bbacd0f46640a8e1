//! The receiving half of a connection.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::control::Control;
use super::lifecycle::{Half, Wanted};
use super::shared::Shared;
use super::wait::Owner;
use super::writer::Writer;
use crate::buffer::BufferSeam;
use crate::buffer::LinkBuffer;
use crate::memory::Slice;

/// The receiving half of a connection.
///
/// The engine receives whether or not anybody waits, up to the connection's watermark. What has arrived is handed
/// over whole, without a copy, into a [`LinkBuffer`] of the reader's own; taking messages out of it is plain
/// memory access.
///
/// # Cancellation
/// Every future here only waits for bytes to arrive, and takes them out when they are all there. Dropping one at
/// any moment loses no byte: the next call finds what had come.
///
/// # Errors
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the peer has ended before enough bytes came; what did come
/// stays readable. The errno of the kernel, for instance `ECONNRESET`, if the connection broke, and `ECONNABORTED` if
/// it was aborted; what had arrived before stays readable too. [`NotConnected`](io::ErrorKind::NotConnected) if this side has
/// closed it, [`TimedOut`](io::ErrorKind::TimedOut) without an errno if the wait was over time,
/// [`InvalidData`](io::ErrorKind::InvalidData) if more is wanted than the limit
/// [`message_bytes_max`](crate::Limits::message_bytes_max), whether or not it has arrived: nothing more is received then, and
/// later reads that have to wait fail with `EMSGSIZE`.
///
/// # Threads
/// A reader is `Send`: it can wait on its poller, on another thread, or in any executor.
pub struct Reader {
    shared: Arc<Shared>,
    buffer: LinkBuffer,
    /// Bytes handed over so far, and [`WAITING`]: together, since every connection has them.
    progress: u64,
}

/// The last poll has left a wait behind.
const WAITING: u64 = 1 << 63;

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Reader {
        Reader { shared, buffer: LinkBuffer::new(), progress: 0 }
    }

    /// What has been handed over and not been read. More may have arrived.
    pub fn buffer_mut(&mut self) -> &mut LinkBuffer {
        &mut self.buffer
    }

    /// Whether the two are halves of one connection.
    pub fn is_half_of(&self, writer: &Writer) -> bool {
        Arc::ptr_eq(&self.shared, writer.shared())
    }

    /// Bytes read so far: handed over, and not in [`buffer_mut`](Reader::buffer_mut) any more.
    pub fn consumed(&self) -> u64 {
        (self.progress & !WAITING).saturating_sub(self.buffer.len() as u64)
    }

    /// Waits until [`buffer_mut`](Reader::buffer_mut) holds at least `min_bytes`.
    ///
    /// Polls that follow each other are one wait, with one timeout, until there is a result or
    /// [`end_wait`](Reader::end_wait) is called. One that is left behind expires by itself: it is forgotten unless it is
    /// taken up within 20 milliseconds, and the next poll begins a wait of its own.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, min_bytes: usize) -> Poll<io::Result<()>> {
        self.poll_wanted(cx, min_bytes, Wanted::Bytes(Owner::Poll))
    }

    /// As [`poll_fill`](Reader::poll_fill), for layers above that always wait for what comes: neither the limits for reading nor a
    /// shutdown end it.
    #[doc(hidden)]
    pub fn poll_whatever(
        &mut self,
        cx: &mut Context<'_>,
        min_bytes: usize,
    ) -> Poll<io::Result<()>> {
        self.poll_wanted(cx, min_bytes, Wanted::Whatever)
    }

    #[inline]
    fn poll_wanted(
        &mut self,
        cx: &mut Context<'_>,
        min_bytes: usize,
        wanted: Wanted,
    ) -> Poll<io::Result<()>> {
        // Whether or not it is there: how much arrived at once is chance.
        self.check_message(min_bytes)?;
        if self.buffer.len() >= min_bytes {
            return Poll::Ready(Ok(()));
        }
        let waiting = self.is_waiting();
        let Reader { shared, buffer, progress } = self;
        if waiting {
            let is_request = matches!(wanted, Wanted::Request);
            let taken = shared.life().take_awaited(buffer, min_bytes, is_request);
            if let Some(taken) = taken {
                *progress = (*progress & !WAITING) + taken as u64;
                return Poll::Ready(Ok(()));
            }
        }
        let result = shared.poll(cx, !waiting, progress, |life, offer, clock| {
            life.fill(buffer, min_bytes, wanted, offer, clock)
        });
        self.set_waiting(result.is_pending());
        result.map_err(io::Error::from)
    }

    #[inline]
    fn is_waiting(&self) -> bool {
        self.progress & WAITING != 0
    }

    #[inline]
    fn set_waiting(&mut self, waits: bool) {
        self.progress = (self.progress & !WAITING) | (u64::from(waits) << 63);
    }

    /// For layers above, which have the messages: an error if one of so many bytes is longer than it may be, and nothing more is
    /// received then.
    #[doc(hidden)]
    #[inline]
    pub fn check_message(&mut self, bytes: usize) -> io::Result<()> {
        if bytes > self.shared.message_bytes_max() { Err(self.overrun(bytes)) } else { Ok(()) }
    }

    #[cold]
    fn overrun(&mut self, bytes: usize) -> io::Error {
        self.shared.change(|life| life.overrun(self.shared.clock()));
        let max = self.shared.message_bytes_max();
        let text = format!(
            "a message of {bytes} bytes or more, where {max} are the most (`message_bytes_max`)"
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    /// Waits until [`buffer_mut`](Reader::buffer_mut) holds at least `min_bytes`.
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn fill(&mut self, min_bytes: usize) -> io::Result<()> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_wanted(cx, min_bytes, OURS)).await
    }

    /// Waits for at least one byte more than [`buffer_mut`](Reader::buffer_mut) holds; false at the end of the stream.
    ///
    /// See [`poll_fill`](Reader::poll_fill) for what polls are one wait.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.poll_more_wanted(cx, Wanted::Bytes(Owner::Poll))
    }

    fn poll_more_wanted(&mut self, cx: &mut Context<'_>, wanted: Wanted) -> Poll<io::Result<bool>> {
        let min_bytes = self.buffer.len() + 1;
        match ready!(self.poll_wanted(cx, min_bytes, wanted)) {
            Ok(()) => Poll::Ready(Ok(true)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(false)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Waits for at least one byte more than [`buffer_mut`](Reader::buffer_mut) holds; false at the end of the stream. For
    /// a parser that has found its message incomplete.
    ///
    /// # Errors
    /// The errno of the kernel if the connection broke.
    pub async fn more(&mut self) -> io::Result<bool> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_more_wanted(cx, OURS)).await
    }

    /// The next `n` bytes, contiguous and owned, not copied unless they arrived in pieces of different blocks.
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn next(&mut self, n: usize) -> io::Result<Slice> {
        self.fill(n).await?;
        Ok(self.buffer.next(n)?)
    }

    /// The next message of those that begin with a header of `header_bytes`, from which `body_bytes` tells how many follow it:
    /// gives those that follow, contiguous and owned, not copied unless they arrived in pieces of different blocks, and drops
    /// the header.
    ///
    /// It is one wait, with one read timeout for the whole message: a peer that sends a byte now and then does not put it off.
    ///
    /// ```no_run
    /// # async fn example(connection: &mut duopoll_core::Reader) -> std::io::Result<()> {
    /// let mut kind = 0;
    /// let body = connection.frame(5, |header| {
    ///     kind = header[0];
    ///     Ok(u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize)
    /// }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`Reader`]; what `body_bytes` returns, and nothing is consumed then.
    pub async fn frame(
        &mut self,
        header_bytes: usize,
        mut body_bytes: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<Slice> {
        let mut whole = Whole::new(self);
        whole.fill(header_bytes).await?;
        let body_bytes = body_bytes(whole.0.0.buffer.peek(header_bytes)?)?;
        whole.fill(header_bytes.saturating_add(body_bytes)).await?;
        let buffer = &mut whole.0.0.buffer;
        buffer.skip(header_bytes)?;
        Ok(buffer.next(body_bytes)?)
    }

    /// The next `n` bytes, contiguous, left where they are.
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        self.fill(n).await?;
        Ok(self.buffer.peek(n)?)
    }

    /// Drops the next `n` bytes.
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn skip(&mut self, n: usize) -> io::Result<()> {
        self.fill(n).await?;
        Ok(self.buffer.skip(n)?)
    }

    /// The next bytes through `delimiter`, which is included. It is one wait, with one read timeout.
    ///
    /// # Errors
    /// See [`Reader`]; [`InvalidData`](io::ErrorKind::InvalidData) if the delimiter is not among the next
    /// `max_bytes`. Nothing is consumed then.
    pub async fn until(&mut self, delimiter: u8, max_bytes: usize) -> io::Result<Slice> {
        let mut whole = Whole::new(self);
        let mut searched = 0;
        loop {
            let buffer = &mut whole.0.0.buffer;
            if let Some(at) = buffer.find(delimiter, searched) {
                if at < max_bytes {
                    whole.fill(at + 1).await?;
                    return Ok(whole.0.0.buffer.next(at + 1)?);
                }
            }
            searched = buffer.len();
            if searched >= max_bytes {
                let message = format!("no delimiter within {max_bytes} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            whole.fill(searched + 1).await?;
        }
    }

    /// The next byte.
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn read_u8(&mut self) -> io::Result<u8> {
        self.fill(1).await?;
        Ok(self.buffer.read_u8()?)
    }

    /// The next four bytes, as a big-endian number.
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn read_u32(&mut self) -> io::Result<u32> {
        self.fill(4).await?;
        let mut bytes = [0; 4];
        self.buffer.copy_to(&mut bytes);
        Ok(u32::from_be_bytes(bytes))
    }

    /// Copies what comes next into `target`: at least one byte, unless the stream has ended or `target` is empty.
    /// Returns how many.
    ///
    /// # Errors
    /// The errno of the kernel if the connection broke.
    pub async fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_read_wanted(cx, target, OURS)).await
    }

    /// As [`read`](Reader::read).
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_wanted(cx, target, Wanted::Bytes(Owner::Poll))
    }

    fn poll_read_wanted(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut [u8],
        wanted: Wanted,
    ) -> Poll<io::Result<usize>> {
        let waits = self.buffer.is_empty() && !target.is_empty();
        if waits && !ready!(self.poll_more_wanted(cx, wanted))? {
            return Poll::Ready(Ok(0));
        }
        Poll::Ready(Ok(self.buffer.copy_to(target)))
    }

    /// Waits until something is buffered. False at the end of the stream.
    ///
    /// Polls that follow each other are one wait, as with [`poll_fill`](Reader::poll_fill).
    ///
    /// # Errors
    /// The errno of the kernel if the connection broke.
    pub fn poll_buffered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.buffer.is_empty() { self.poll_more(cx) } else { Poll::Ready(Ok(true)) }
    }

    /// Copies what comes next, at most `room` bytes, piece by piece with `put`: at least one byte, unless the stream has ended or
    /// there is no room. For targets that are no slices.
    ///
    /// # Errors
    /// The errno of the kernel if the connection broke.
    #[doc(hidden)]
    pub fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        put: impl FnMut(&[u8]),
    ) -> Poll<io::Result<()>> {
        if room > 0 && ready!(self.poll_buffered(cx))? {
            self.copy_out(room, put)?;
        }
        Poll::Ready(Ok(()))
    }

    /// The same, with a wait as of [`poll_whatever`](Reader::poll_whatever).
    #[doc(hidden)]
    pub fn poll_copy_whatever(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        put: impl FnMut(&[u8]),
    ) -> Poll<io::Result<()>> {
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        match ready!(self.poll_whatever(cx, 1)) {
            Ok(()) => self.copy_out(room, put)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }

    fn copy_out(&mut self, mut room: usize, mut put: impl FnMut(&[u8])) -> io::Result<()> {
        while room > 0 && !self.buffer.is_empty() {
            let chunk = self.buffer.first_chunk();
            let n = chunk.len().min(room);
            put(&chunk[..n]);
            self.buffer.skip(n)?;
            room -= n;
        }
        Ok(())
    }

    /// The next `n` bytes as a buffer, not copied.
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn split_to(&mut self, n: usize) -> io::Result<LinkBuffer> {
        self.fill(n).await?;
        Ok(self.buffer.split_to(n)?)
    }

    /// For servers: waits for a byte more than `seen`, unless the connection is to end. False at the end of the
    /// stream, when this side has closed, and while the server shuts down if nothing is buffered, which then is a moment
    /// between two requests.
    #[doc(hidden)]
    pub fn poll_request(&mut self, cx: &mut Context<'_>, seen: usize) -> Poll<io::Result<bool>> {
        if self.buffer.len() > seen && self.shared.life().is_closed() {
            return Poll::Ready(Ok(false));
        }
        match self.poll_wanted(cx, seen + 1, Wanted::Request) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Ok(true)),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(Ok(false))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    /// Waits for the next request: until there is a byte to read. False at the peer's end, and when the server shuts down
    /// while there is none. For loops that serve a whole connection; the read timeout does not count here, only
    /// the idle timeout does.
    ///
    /// # Errors
    /// The errno of the kernel if the connection broke.
    ///
    /// # Cancellation
    /// Dropping the future loses nothing.
    pub async fn next_request(&mut self) -> io::Result<bool> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_request(cx, 0)).await
    }

    /// For servers: requests of this connection are being handled from now on, so that an end by force is a reset until
    /// [`poll_request`](Reader::poll_request) waits for the next one.
    #[doc(hidden)]
    pub fn serve(&self) {
        self.shared.life().serve();
    }

    /// Takes the socket away from its poller, and waits until the kernel holds nothing of it on the poller's behalf. What
    /// has arrived until then is in [`buffer_mut`](Reader::buffer_mut). The connection can not be used any more then, but
    /// the socket lives on in duplicates that were made of it.
    /// What was flushed and the kernel has not taken is dropped: [`drain`](super::Writer::drain) first.
    ///
    /// # Errors
    /// [`NotConnected`](io::ErrorKind::NotConnected) if it was closed before, the errno of the kernel if it broke.
    pub fn poll_detach(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waiting = self.is_waiting();
        let Reader { shared, buffer, progress } = self;
        let result = shared
            .poll(cx, !waiting, progress, |life, offer, clock| life.detach(buffer, offer, clock));
        self.set_waiting(result.is_pending());
        result.map_err(io::Error::from)
    }

    /// A handle on the connection, for timeouts and for ending it from elsewhere.
    pub fn control(&self) -> Control {
        Control::new(self.shared.clone())
    }

    /// For layers below: what has arrived, without waiting.
    #[doc(hidden)]
    pub fn take_arrived(&mut self) {
        self.buffer.adopt_chain(&mut self.shared.life().inbox);
    }

    /// Forgets the wait that a poll has left behind, and with it its waker and its timeout.
    pub fn end_wait(&mut self) {
        if self.is_waiting() {
            self.set_waiting(false);
            let unused = self.shared.life().end_reading(self.shared.clock());
            drop(unused);
        }
    }

    /// Closes the connection, both halves: what was flushed still goes out, then the FIN; what arrives is dropped.
    /// Whoever waits on it is woken with an error. Harmless if it is closed already.
    ///
    /// What the writer has staged and not flushed is not sent: the reader does not know of it. See
    /// [`Writer::close`](super::Writer::close).
    pub fn close(&self) {
        self.shared.close(None);
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

    /// The same, for whoever sets no options of it.
    #[doc(hidden)]
    pub fn own_socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: a half lets go when it is dropped.
        unsafe { self.shared.socket() }
    }

    /// The socket, for options and addresses. None under a simulated engine.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.shared.expose();
        // SAFETY: a half lets go when it is dropped.
        unsafe { self.shared.socket() }
    }
}

/// A wait of a future of ours.
const OURS: Wanted = Wanted::Bytes(Owner::Future);

/// A wait of a future: begun with it, and dropped with it.
struct Waiting<'a>(&'a mut Reader);

impl Waiting<'_> {
    fn new(reader: &mut Reader) -> Waiting<'_> {
        // Somebody may have polled and gone.
        reader.end_wait();
        Waiting(reader)
    }
}

/// Waits that are one, for the parts of a message.
struct Whole<'a>(Waiting<'a>, bool);

impl Whole<'_> {
    fn new(reader: &mut Reader) -> Whole<'_> {
        Whole(Waiting::new(reader), false)
    }

    async fn fill(&mut self, min_bytes: usize) -> io::Result<()> {
        let Whole(Waiting(reader), begun) = self;
        poll_fn(|cx| {
            if min_bytes <= reader.shared.message_bytes_max() && reader.buffer.len() >= min_bytes {
                return Poll::Ready(Ok(()));
            }
            // Only what has to wait needs the time.
            if !std::mem::replace(begun, true) {
                reader.shared.life().begin_message(reader.shared.clock());
            }
            reader.poll_wanted(cx, min_bytes, Wanted::Rest)
        })
        .await
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.end_wait();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.half_gone(Half::Reader);
        // SAFETY: once, and last.
        unsafe { self.shared.let_go() };
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("connection", &self.shared)
            .field("buffered_bytes", &self.buffer.len())
            .finish()
    }
}
