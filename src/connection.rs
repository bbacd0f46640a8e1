//! A connection: a reader and a writer, and the socket they share.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use duopoll_core::{CallbackId, Control, LinkBuffer, Reader, Slice, Writer};
use futures_channel::oneshot;
use socket2::{Domain, SockRef};
use sync_wrapper::SyncWrapper;

use crate::address::Address;
use crate::tcp::{self, Keepalive};

/// A connected stream socket, with a [`Reader`] and a [`Writer`].
///
/// The methods here are those of the halves, for short; [`reader_mut`](Connection::reader_mut) and
/// [`writer_mut`](Connection::writer_mut) have the others. The halves can be taken apart with
/// [`into_split`](Connection::into_split), and used on different threads.
///
/// Dropping a connection closes it: what was flushed still goes out, then the FIN, both by its poller. On the poller's own thread
/// that is when it comes to its next turn: who waits for the peer there without giving way waits for ever.
///
/// # Life cycle
///
/// ```text
/// dial ──▶ connecting ──▶ open ◀── accept, adopt
///              │           │
///              │           │ finish, or the peer's FIN: one direction has ended
///              │           ▼
///              │      half-closed
///              │           │
///              │           │ close, or both halves are dropped; from open, too
///              │           ▼
///      refused │        closing: what was flushed goes out, then the FIN; what arrives is dropped
///              │           │
///              │           │ the peer has closed, too
///              │           ▼
///              └────────▶ over ◀── from anywhere: a reset, abort, the idle timeout, the poller's end
/// ```
///
/// The descriptor is closed when the connection is over and both halves are dropped, not before: its number means nothing
/// else as long as somebody may ask for it.
///
/// # Ends
/// *Staged* is what was written and not flushed, *flushed* what was flushed and the kernel has not taken yet. An end cuts
/// something *short* if it drops what was flushed, or if it is by force and a server's handler is within a request: whoever
/// reads to the end must not take that for the whole, so it is a reset. On a Unix socket
/// nobody can ask for one: the peer sees the end, or `ECONNRESET` behind all that was sent if something it sent was not read.
///
/// | end | the peer sees | staged | flushed | received and not read |
/// |---|---|---|---|---|
/// | [`Connection::close`], [`Writer::close`] | all of it, then a FIN | sent | sent, see below | dropped |
/// | [`Reader::close`], [`Control::close`] | what was flushed, then a FIN | dropped | sent, see below | dropped |
/// | [`finish`](Connection::finish) | all of it, then a FIN | sent | sent | can be read, and more may come |
/// | the connection, or both its halves, are dropped | what was flushed, then a FIN | dropped | sent, see below | dropped |
/// | the reader alone is dropped | nothing | can be flushed | sent | dropped, and so is all that comes later |
/// | the writer alone is dropped | what was flushed, then a FIN | dropped | sent | can be read, and more may come |
/// | [`abort`](Connection::abort) | a reset | dropped | dropped | can be read |
/// | [`detach`](Connection::detach) | nothing | sent before | sent before | given to the caller |
/// | the idle timeout | a FIN, or a reset if it cuts something short | dropped | dropped | can be read |
/// | the write timeout of a close | a reset if it cuts something short, else a FIN | dropped | dropped | dropped |
/// | a server's shutdown, within the grace | all replies, then a FIN | sent when the handler returns | sent | answered first |
/// | a handler returns an error or panics, an owned connection is dropped | what was flushed, then a FIN; [`abort`](Control::abort) first, if that is not the whole | dropped | sent, see below | dropped |
/// | its grace is over, or the [`Server`](crate::Server) is dropped | a FIN, or a reset if it cuts something short | dropped | dropped | can be read |
/// | [`Pollers::stop`](crate::Pollers::stop), a poller ends | what was flushed, then a FIN; a reset if it cuts something short | dropped | sent, for at most a second | can be read |
/// | the process ends, or an engine breaks | what the kernel has taken, then a FIN, or a reset if something was not read | lost | lost | lost |
///
/// What the kernel takes it sends on, but nobody learns whether the peer has read it. Closing or dropping a connection does
/// not wait until the kernel has taken everything: before a process ends, wait for [`drain`](Connection::drain).
///
/// A connection that is closed has the write timeout, or 10 seconds without one, for what is left to send, and a second more
/// for the peer's FIN. What arrives meanwhile is dropped: a socket that is closed with bytes unread sends a reset, which can
/// destroy the last reply on its way.
///
/// # Time
///
/// | limit | what starts it | what stops or restarts it | what comes of it |
/// |---|---|---|---|
/// | read timeout | a read that begins to wait, each anew | the wait's end | the wait fails with `TimedOut` |
/// | read deadline | the clock | another deadline | as a timeout; a read of what has arrived does not fail |
/// | write timeout | a `flush` or `drain` that begins to wait | the wait's end; bytes that the peer takes do not | the wait fails with `TimedOut`; what was flushed is still sent |
/// | write deadline | the clock | another deadline | as a timeout; a flush that has nothing to wait for does not fail |
/// | idle timeout | the connection waits for its peer: in a read, or to take what was flushed | each byte that moves, either way, restarts it | the connection ends with `ETIMEDOUT` |
/// | the write timeout of a close | the close | all is sent | the connection ends with `ETIMEDOUT` |
///
/// - What the peer did in time counts, even if the poller looks at it late, because a handler computed or the process was
///   stopped. Bytes that had arrived and the peer's end then end a read as if the poller had been there, and put off the
///   idle timeout.
/// - A peer that reads slowly makes the kernel tell of room only now and then. So when the idle timeout is over and not all was acknowledged
///   that was sent, the connection goes on for that time once more, and for as long as more is acknowledged each time.
/// - A poller that is late by 10 ms or more does not know what the peer would have taken or sent meanwhile. So a write
///   timeout, an idle timeout or that of a close that is over then begins once more, unless it has done so before.
/// - If the idle timeout and the timeout of a read are due at once, the connection ends.
/// - The time in which a connection waits for something else does not count as idle: while its handler computes or waits
///   for another connection, and while it is [paused](Control::pause).
/// - Between two requests a server's connection is under no read timeout, only the idle timeout.
/// - A tick is a millisecond; nothing ends earlier than it was told to.
///
/// # Callbacks
/// For a connection of a server in this order, one at a time: `on_prepare`, `on_connect`, `on_request` for as long as
/// requests come, `on_disconnect`; all but `on_request` once. [`on_close`](Connection::on_close) tells of the end when it
/// is found out, which may be while a handler runs, and before it has read what came before the end.
///
/// # Errors
///
/// | what has happened | reads, when what had arrived is read | `flush` and `drain` |
/// |---|---|---|
/// | the peer's FIN | `more`: false, `read`: 0, others: `UnexpectedEof` | go on |
/// | a reset, or another error of the kernel | its errno | its errno, mostly `EPIPE` or `ECONNRESET` |
/// | [`finish`](Connection::finish) by this side | go on | `NotConnected` if something is staged |
/// | [`close`](Connection::close) by this side | `NotConnected`; what had arrived is gone, but for what is in [`input_mut`](Connection::input_mut) | `NotConnected` if something is staged; a wait that is under way goes on |
/// | [`abort`](Connection::abort) by this side, the end of the poller, or a server's grace is over | `ECONNABORTED` | `ECONNABORTED` |
/// | a timeout or a deadline of the wait | `TimedOut` without an errno, once for each wait | the same |
/// | the idle timeout | `ETIMEDOUT` | `ETIMEDOUT` |
/// | closing took too long | `NotConnected`, as since the close | `ETIMEDOUT` |
///
/// After a timeout of a wait the connection is as good as before; everything else is for good.
///
/// # Cancellation
/// Every future may be dropped at any moment, but that of [`detach`](Connection::detach): a read takes nothing before it
/// has everything it waits for, and what was flushed is sent once, whether or not somebody waits for it. The timer of
/// a wait ends with the wait.
///
/// # Threads
/// A connection is `Send` and `Sync`, and its futures may move between threads and executors; the last waker counts. In each
/// direction there is one wait at a time, which the borrow checker sees to:
///
/// ```compile_fail,E0499
/// # async fn twice(connection: &mut duopoll::Connection) {
/// let first = connection.next(1);
/// let second = connection.more();
/// let _ = (first.await, second.await);
/// # }
/// ```
///
/// Reading and writing at once need [`split`](Connection::split); a [`Control`] can be had for everything else.
pub struct Connection {
    // Taken out once, when it is dropped or taken apart.
    reader: ManuallyDrop<Reader>,
    writer: ManuallyDrop<Writer>,
    /// Most have none. Only reached through `&mut`, so it need not be `Sync`.
    extra: SyncWrapper<Option<Box<Extra>>>,
}

/// What few connections have.
#[derive(Default)]
struct Extra {
    state: Option<Box<dyn Any + Send>>,
    /// Where it goes when it is dropped.
    home: Option<oneshot::Sender<Connection>>,
}

impl Connection {
    /// One that has a peer. The kernel is asked for its address, which it does not know any more after a reset.
    pub(crate) fn established(reader: Reader, writer: Writer) -> Connection {
        let address = reader.own_socket().map(|socket| SockRef::from(&socket).peer_addr());
        let address = address.and_then(Result::ok);
        if let Some(address) = address.and_then(|address| address.as_socket()) {
            reader.control().remember_peer(address);
        }
        Connection::new(reader, writer)
    }

    pub(crate) fn new(reader: Reader, writer: Writer) -> Connection {
        Connection {
            reader: ManuallyDrop::new(reader),
            writer: ManuallyDrop::new(writer),
            extra: SyncWrapper::new(None),
        }
    }

    /// Puts a connection together of its halves. The limits and whatever else they have stay.
    ///
    /// # Errors
    /// The halves, if they are not of the same connection.
    #[expect(clippy::result_large_err, reason = "they are what was given")]
    pub fn from_halves(reader: Reader, writer: Writer) -> Result<Connection, (Reader, Writer)> {
        match reader.is_half_of(&writer) {
            true => Ok(Connection::new(reader, writer)),
            false => Err((reader, writer)),
        }
    }

    /// Has it come back when it is dropped, unless it is taken apart or detached.
    pub(crate) fn lend(&mut self) -> oneshot::Receiver<Connection> {
        let (home, back) = oneshot::channel();
        self.extra().home = Some(home);
        back
    }

    /// Its socket, which is not seen by anybody else.
    pub(crate) fn own_socket(&self) -> BorrowedFd<'_> {
        match self.reader.own_socket() {
            Some(socket) => socket,
            None => unreachable!("a connection of this crate has a socket"),
        }
    }

    fn extra(&mut self) -> &mut Extra {
        self.extra.get_mut().get_or_insert_default()
    }

    /// The receiving half.
    pub fn reader_mut(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// The sending half.
    pub fn writer_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// Both halves at once.
    pub fn split(&mut self) -> (&mut Reader, &mut Writer) {
        (&mut self.reader, &mut self.writer)
    }

    /// Keeps a value with the connection, in place of the one it kept before. It is dropped with the connection.
    pub fn set_state<T: Any + Send>(&mut self, state: T) {
        self.extra().state = Some(Box::new(state));
    }

    /// The value that is kept with the connection, if there is one of this type.
    pub fn state_mut<T: Any + Send>(&mut self) -> Option<&mut T> {
        self.extra.get_mut().as_mut()?.state.as_mut()?.downcast_mut()
    }

    /// The halves as values of their own, of which [`from_halves`](Connection::from_halves) makes a connection again. It is
    /// closed when both are dropped. The state that was kept with it is dropped now.
    pub fn into_split(self) -> (Reader, Writer) {
        let mut this = ManuallyDrop::new(self);
        let extra = this.extra.get_mut().take();
        // SAFETY: nobody has the connection any more.
        let halves = unsafe { this.take_halves() };
        drop(extra);
        halves
    }

    /// # Safety
    /// Once, and neither half is used or dropped afterwards.
    unsafe fn take_halves(&mut self) -> (Reader, Writer) {
        // SAFETY: promised by the caller.
        unsafe { (ManuallyDrop::take(&mut self.reader), ManuallyDrop::take(&mut self.writer)) }
    }

    /// What has been received and not been read, as far as it was handed over; see [`Reader::buffer_mut`].
    pub fn input_mut(&mut self) -> &mut LinkBuffer {
        self.reader.buffer_mut()
    }

    /// See [`Reader::fill`].
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn fill(&mut self, min_bytes: usize) -> io::Result<()> {
        self.reader.fill(min_bytes).await
    }

    /// See [`Reader::more`].
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn more(&mut self) -> io::Result<bool> {
        self.reader.more().await
    }

    /// See [`Reader::next`].
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn next(&mut self, n: usize) -> io::Result<Slice> {
        self.reader.next(n).await
    }

    /// See [`Reader::peek`].
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        self.reader.peek(n).await
    }

    /// See [`Reader::skip`].
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn skip(&mut self, n: usize) -> io::Result<()> {
        self.reader.skip(n).await
    }

    /// See [`Reader::frame`].
    ///
    /// # Errors
    /// See [`Reader::frame`].
    pub async fn frame(
        &mut self,
        header_bytes: usize,
        body_bytes: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<Slice> {
        self.reader.frame(header_bytes, body_bytes).await
    }

    /// See [`Reader::until`].
    ///
    /// # Errors
    /// See [`Reader::until`].
    pub async fn until(&mut self, delimiter: u8, max_bytes: usize) -> io::Result<Slice> {
        self.reader.until(delimiter, max_bytes).await
    }

    /// See [`Reader::read`].
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.reader.read(target).await
    }

    /// See [`Reader::read_u8`].
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn read_u8(&mut self) -> io::Result<u8> {
        self.reader.read_u8().await
    }

    /// See [`Reader::read_u32`].
    ///
    /// # Errors
    /// See [`Reader`].
    pub async fn read_u32(&mut self) -> io::Result<u32> {
        self.reader.read_u32().await
    }

    /// See [`Writer::write`].
    ///
    /// # Errors
    /// See [`Writer::write`].
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write(bytes)
    }

    /// See [`Writer::push`].
    pub fn push(&mut self, slice: impl Into<Slice>) {
        self.writer.push(slice);
    }

    /// See [`Writer::append`].
    pub fn append(&mut self, buffer: &mut LinkBuffer) {
        self.writer.append(buffer);
    }

    /// See [`Writer::flush`].
    ///
    /// # Errors
    /// See [`Writer`].
    pub async fn flush(&mut self) -> io::Result<()> {
        self.writer.flush().await
    }

    /// See [`Writer::drain`].
    ///
    /// # Errors
    /// See [`Writer`].
    pub async fn drain(&mut self) -> io::Result<()> {
        self.writer.drain().await
    }

    /// See [`Writer::finish`].
    pub fn finish(&mut self) {
        self.writer.finish();
    }

    /// Takes the socket out: sends what was staged or flushed, stops receiving, and gives the descriptor, non-blocking and otherwise
    /// as it was, with the bytes that had been received and not been read.
    ///
    /// Dropping the future before it is done, or an error, drops the connection. From the moment on that its poller has let
    /// go of it that is no more than a close(2), which resets the connection if something has arrived that nobody has read.
    ///
    /// # Errors
    /// The errno of the kernel if the connection broke, [`TimedOut`](io::ErrorKind::TimedOut) if the write timeout
    /// ends the sending, [`NotConnected`](io::ErrorKind::NotConnected) if it was closed before.
    pub async fn detach(self) -> io::Result<(OwnedFd, LinkBuffer)> {
        let (mut reader, mut writer) = self.into_split();
        writer.drain().await?;
        let socket = match reader.socket() {
            Some(socket) => socket.try_clone_to_owned()?,
            None => unreachable!("a connection of this crate has a socket"),
        };
        poll_fn(|cx| reader.poll_detach(cx)).await?;
        Ok((socket, std::mem::take(reader.buffer_mut())))
    }

    /// A handle for timeouts, deadlines, and ending the connection from elsewhere.
    pub fn control(&self) -> Control {
        self.reader.control()
    }

    /// See [`Control::set_read_timeout`].
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.control().set_read_timeout(timeout);
    }

    /// See [`Control::set_write_timeout`].
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.control().set_write_timeout(timeout);
    }

    /// See [`Control::set_idle_timeout`].
    pub fn set_idle_timeout(&self, timeout: Option<Duration>) {
        self.control().set_idle_timeout(timeout);
    }

    /// See [`Control::set_read_deadline`].
    pub fn set_read_deadline(&self, deadline: Option<Instant>) {
        self.control().set_read_deadline(deadline);
    }

    /// See [`Control::set_write_deadline`].
    pub fn set_write_deadline(&self, deadline: Option<Instant>) {
        self.control().set_write_deadline(deadline);
    }

    /// TCP keepalive, or none.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported) on a Unix socket; `EINVAL` for times and counts that the kernel does
    /// not know.
    pub fn set_keepalive(&self, keepalive: Option<Keepalive>) -> io::Result<()> {
        self.needs_tcp("keepalive")?;
        tcp::set_keepalive(self, keepalive)
    }

    /// How long sent bytes may stay unacknowledged before the connection ends with `ETIMEDOUT` (`TCP_USER_TIMEOUT`), in
    /// milliseconds; none: what the kernel allows.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported) on a Unix socket.
    pub fn set_user_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.needs_tcp("user timeout")?;
        tcp::set_user_timeout(self, timeout)
    }

    fn needs_tcp(&self, option: &str) -> io::Result<()> {
        match SockRef::from(self).domain()? {
            Domain::UNIX => Err(tcp::not_tcp(option)),
            _ => Ok(()),
        }
    }

    /// See [`Control::on_close`].
    pub fn on_close(&self, callback: impl FnOnce() + Send + 'static) -> Option<CallbackId> {
        self.control().on_close(callback)
    }

    /// A number that no other connection of this process has, also on its halves and [`Control`]s.
    pub fn id(&self) -> u64 {
        self.reader.id()
    }

    /// See [`Control::pause`].
    pub fn pause(&self) {
        self.control().pause();
    }

    /// See [`Control::resume`].
    pub fn resume(&self) {
        self.control().resume();
    }

    /// See [`Reader::next_request`].
    ///
    /// # Errors
    /// As there.
    pub async fn next_request(&mut self) -> io::Result<bool> {
        self.reader.next_request().await
    }

    /// See [`Control::is_active`].
    pub fn is_active(&self) -> bool {
        self.control().is_active()
    }

    /// Ends the connection with a reset; see [`Control::abort`].
    pub fn abort(&self) {
        self.control().abort();
    }

    /// Closes the connection: what was flushed and what is staged goes out, then the FIN; what arrives is dropped. Dropping it
    /// does the same, but for what is staged.
    pub fn close(&mut self) {
        self.writer.close();
    }

    /// The address of the other end, also when the connection is over.
    ///
    /// # Errors
    /// `ENOTCONN` if it was gone before it was taken on.
    pub fn peer_addr(&self) -> io::Result<Address> {
        if let Some(address) = self.reader.peer_addr() {
            return Ok(Address::Tcp(address));
        }
        Address::from_sock_addr(&SockRef::from(&self.own_socket()).peer_addr()?)
    }

    /// The address of this end.
    ///
    /// # Errors
    /// `ENOBUFS` if the kernel has no memory.
    pub fn local_addr(&self) -> io::Result<Address> {
        Address::from_sock_addr(&SockRef::from(&self.own_socket()).local_addr()?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let extra = self.extra.get_mut().take();
        // SAFETY: once, and last.
        let (reader, writer) = unsafe { self.take_halves() };
        let Some(Extra { state, home: Some(home) }) = extra.map(|extra| *extra) else { return };
        let mut connection = Connection::new(reader, writer);
        if state.is_some() {
            connection.extra().state = state;
        }
        // If nobody waits for it any more, it is dropped for good.
        let _ = home.send(connection);
    }
}

/// For socket options. The socket is the engine's: reading from it, writing to it or closing it breaks the
/// connection.
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.reader.socket() {
            Some(socket) => socket,
            None => unreachable!("a connection of this crate has a socket"),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("reader", &self.reader)
            .field("staged_bytes", &self.writer.staged_len())
            .finish()
    }
}
