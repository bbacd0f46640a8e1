//! The state of a connection, between its engine and its users.
//!
//! ```text
//!   engine ──▶ intake ──▶ inbox ══▶ Reader's own LinkBuffer ──▶ user
//!   engine ◀── sending ◀── outbox ◀══ Writer's own LinkBuffer ◀── user
//!              poller's      ▲
//!              own       under the lock; ══ moves the whole in O(1)
//! ```
//!
//! The inbox and the outbox are all that is shared. Parsing and building messages happens in buffers of the halves'
//! own, I/O in buffers of the poller's own, and neither takes the lock.
//!
//! Wakers are taken out under the lock and called after it is released. On the poller's own thread the lock is free of
//! charge, see [`Confined`].

mod control;
mod reader;
mod wait;
mod writer;

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
#[cfg(feature = "zerocopy")]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Waker;
use std::time::Duration;

pub use control::Control;
pub use reader::Reader;
pub use writer::Writer;

use crate::buffer::Chain;
use crate::confined::{Confined, Guard};
use crate::mailbox::{Command, Mailbox};
use crate::poll::{Next, Outputs};
use crate::timer::Tick;
use crate::token::Token;
pub(crate) use wait::NEVER;
use wait::Wait;

/// Limits on what a connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The engine stops receiving when so many bytes wait in the inbox; the kernel's window then holds the peer
    /// back. It goes on when the reader takes them. What was received by then comes on top: on epoll one receive, on
    /// io_uring up to 4 MiB, for all connections of a poller together. Default: 1 MiB.
    pub input_high_bytes: usize,
    /// A flush waits while more bytes than this have not been taken by the kernel. Default: 1 MiB.
    pub output_high_bytes: usize,
    /// How long a read may wait. Default: for ever. See [`Control::set_read_timeout`].
    pub read_timeout: Option<Duration>,
    /// How long a flush may wait. Default: for ever. See [`Control::set_write_timeout`].
    pub write_timeout: Option<Duration>,
    /// How long no byte may move in either direction. Default: for ever. See [`Control::set_idle_timeout`].
    pub idle_timeout: Option<Duration>,
    /// Pieces of at least so many bytes, below 4 GiB, are sent without a copy. Default: none. See
    /// [`Control::set_zerocopy`].
    #[cfg(feature = "zerocopy")]
    pub zerocopy_bytes: Option<usize>,
    /// The most bytes that a connection may have with the kernel for sends without a copy; what is beyond them is
    /// copied. Default: 4 MiB.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_pinned_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            input_high_bytes: 1 << 20,
            output_high_bytes: 1 << 20,
            read_timeout: None,
            write_timeout: None,
            idle_timeout: None,
            #[cfg(feature = "zerocopy")]
            zerocopy_bytes: None,
            #[cfg(feature = "zerocopy")]
            zerocopy_pinned_bytes: 4 << 20,
        }
    }
}

/// What the poller and both halves share.
pub(crate) struct Shared {
    socket: Socket,
    mailbox: Arc<Mailbox>,
    token: Token,
    input_high_bytes: usize,
    output_high_bytes: usize,
    #[cfg(feature = "zerocopy")]
    zero_copy: ZeroCopy,
    state: Confined<State>,
}

/// What is sent without a copy.
#[cfg(feature = "zerocopy")]
struct ZeroCopy {
    /// From so many bytes on; `u32::MAX`: nothing.
    threshold: AtomicU32,
    pinned_bytes_max: u32,
}

/// The descriptor of a connection. It is closed when the poller and both halves have let go, so its number is never
/// used again while one of them could mean this connection by it. Other handles do not keep it open.
struct Socket {
    /// -1 under a simulated engine.
    fd: RawFd,
    holders: AtomicU8,
}

/// The poller, and both halves.
const HOLDERS: u8 = 3;

impl Socket {
    fn new(socket: Option<OwnedFd>) -> Socket {
        let fd = socket.map_or(-1, OwnedFd::into_raw_fd);
        Socket { fd, holders: AtomicU8::new(HOLDERS) }
    }

    /// # Safety
    /// Called once by each holder, and by nobody else.
    unsafe fn let_go(&self) {
        // AcqRel: whatever the others have done with it comes before it is closed.
        if self.holders.fetch_sub(1, Ordering::AcqRel) == 1 && self.fd >= 0 {
            // SAFETY: it was taken over when this was made, and nobody uses it any more.
            drop(unsafe { OwnedFd::from_raw_fd(self.fd) });
        }
    }

    /// # Safety
    /// Called by a holder that has not let go, and does not for as long as the borrow lasts.
    unsafe fn borrow(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: open, as promised by the caller.
        (self.fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(self.fd) })
    }
}

struct State {
    inbox: Chain,
    /// Bytes in the inbox that end the reader's wait; 0 if it does not wait.
    need: usize,
    /// The reader that waits has a part of what it waits for.
    has_part: bool,
    reader: Option<Waker>,
    input: Input,
    reading: Wait,
    /// The engine was told to stop receiving, and waits for a command to go on.
    stopped: bool,
    /// The reader is gone: what arrives is dropped.
    discard: bool,
    /// The peer has ended, or the connection is broken.
    peer_done: bool,
    /// The server is shutting down: a connection between two requests is to end.
    drain: bool,
    /// Bytes that had arrived when it began to, and that the engine has not delivered yet.
    expected: usize,

    outbox: Chain,
    /// Bytes flushed that the kernel has not taken: the outbox, and what the poller is sending.
    unsent: usize,
    writer: Option<Waker>,
    /// The writer's wait ends when no more than this is unsent.
    wake_at: usize,
    output: Output,
    writing: Wait,
    /// The poller knows that there is something in the outbox.
    send_posted: bool,
    /// The writer has finished before the connect has.
    finish_connected: bool,

    /// Halves that are gone.
    reader_gone: bool,
    writer_gone: bool,
    close_posted: bool,
    detached: Detached,

    /// From when on to send without a copy was set anew: what was given up may be tried again.
    #[cfg(feature = "zerocopy")]
    retries_zerocopy: bool,

    /// To be called when the connection is over.
    closers: Closers,

    /// In ticks; `NEVER` if the connection may be idle for ever.
    idle_timeout: Tick,
    /// When the poller's timer for this connection fires; `NEVER` if it is not set.
    armed: Tick,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Input {
    #[default]
    Open,
    /// The peer sent its FIN.
    Ended,
    /// The kernel reported this errno.
    Failed(i32),
    /// Closed by this side.
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Output {
    #[default]
    Open,
    /// The connect is under way.
    Connecting,
    /// No more comes; the FIN goes out behind what is queued.
    Finishing,
    /// The FIN is out.
    Finished,
    /// The kernel reported this errno.
    Failed(i32),
}

/// Whether the socket is to live on without its poller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detached {
    No,
    /// Asked for.
    Wanted,
    /// The engine holds nothing of it any more.
    Done,
    /// The poller has let go of the connection for another reason.
    Gone,
}

/// What a user wants to be called when the connection is over.
type Closer = Box<dyn FnOnce() + Send>;
/// Few connections have any, and those without spend a pointer on it.
type Closers = Option<Box<Vec<Closer>>>;

/// Those who are to be told of a change: taken out under the lock, called without it.
#[derive(Default)]
#[must_use]
pub(crate) struct Wakers {
    reader: Option<Waker>,
    writer: Option<Waker>,
    closers: Closers,
}

impl Wakers {
    /// As [`wake`](Wakers::wake), for an end at which the others must be told though one of the wakers panics. The panic
    /// hook reports it.
    pub(crate) fn wake_at_the_end(self) {
        let Wakers { reader, writer, closers } = self;
        let each = [
            Wakers { reader, ..Wakers::default() },
            Wakers { writer, closers, ..Wakers::default() },
        ];
        for one in each {
            let _ = panic::catch_unwind(AssertUnwindSafe(|| one.wake()));
        }
    }

    #[inline]
    pub(crate) fn wake(self) {
        let Wakers { reader, writer, closers } = self;
        if let Some(reader) = reader {
            reader.wake();
        }
        if let Some(writer) = writer {
            writer.wake();
        }
        if let Some(closers) = closers {
            call(*closers);
        }
    }
}

#[cold]
fn call(closers: Vec<Closer>) {
    // The last first, as destructors run.
    for closer in closers.into_iter().rev() {
        // The panic hook reports it. It must not end whoever found the connection over.
        let _ = panic::catch_unwind(AssertUnwindSafe(closer));
    }
}

/// What came of looking at a connection's deadlines.
#[derive(Default)]
pub(crate) struct Expired {
    pub(crate) wakers: Wakers,
    /// No byte has moved for too long.
    pub(crate) idle: bool,
    /// When to look again; `NEVER` if there is nothing to look for.
    pub(crate) next: Tick,
}

/// The two halves of a new connection, and what the poller keeps.
pub(crate) fn pair(
    socket: Option<OwnedFd>,
    mailbox: Arc<Mailbox>,
    token: Token,
    limits: Limits,
) -> (Arc<Shared>, Reader, Writer) {
    let state = Confined::new(State::new(&limits), mailbox.confines());
    let shared = Arc::new(Shared {
        socket: Socket::new(socket),
        mailbox,
        token,
        input_high_bytes: limits.input_high_bytes,
        output_high_bytes: limits.output_high_bytes,
        #[cfg(feature = "zerocopy")]
        zero_copy: ZeroCopy {
            threshold: AtomicU32::new(threshold(limits.zerocopy_bytes)),
            pinned_bytes_max: saturating(limits.zerocopy_pinned_bytes),
        },
        state,
    });
    (shared.clone(), Reader::new(shared.clone()), Writer::new(shared))
}

impl State {
    fn new(limits: &Limits) -> State {
        State {
            inbox: Chain::new(),
            need: 0,
            has_part: false,
            reader: None,
            input: Input::Open,
            reading: Wait::new(limits.read_timeout),
            stopped: false,
            discard: false,
            peer_done: false,
            drain: false,
            expected: 0,
            outbox: Chain::new(),
            unsent: 0,
            writer: None,
            wake_at: 0,
            output: Output::Open,
            writing: Wait::new(limits.write_timeout),
            send_posted: false,
            finish_connected: false,
            reader_gone: false,
            writer_gone: false,
            close_posted: false,
            detached: Detached::No,
            #[cfg(feature = "zerocopy")]
            retries_zerocopy: false,
            closers: None,
            idle_timeout: limits.idle_timeout.map_or(NEVER, wait::ticks),
            armed: NEVER,
        }
    }

    /// Whether the server is shutting down, and everything that had arrived by then has been delivered.
    fn is_drained(&self) -> bool {
        self.drain && self.expected == 0
    }

    fn lags(&self) -> bool {
        !self.inbox.is_empty() || (self.need > 0 && self.has_part)
    }
}

impl Shared {
    #[inline]
    fn state(&self) -> Guard<'_, State> {
        // SAFETY: a mailbox has one thread at a time.
        unsafe { self.state.lock(self.mailbox.is_local()) }
    }

    /// The connection is about to be given to another thread.
    fn share(&self) {
        if self.mailbox.is_local() {
            // SAFETY: a mailbox has one thread at a time.
            unsafe { self.state.share() };
        }
    }

    /// The poller, or one of the halves, does not use the socket any more.
    ///
    /// # Safety
    /// Each of the three says so once, and does not ask for the [`socket`](Shared::socket) afterwards.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: promised by the caller.
        unsafe { self.socket.let_go() };
    }

    /// The socket; none under a simulated engine.
    ///
    /// # Safety
    /// Only for the poller and the halves, for as long as they have not let go.
    unsafe fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: promised by the caller.
        unsafe { self.socket.borrow() }
    }

    /// Ends both directions from this side: what was flushed still goes out, what arrives is dropped.
    fn close(&self) {
        let wakers = {
            let mut state = self.state();
            state.discard = true;
            state.inbox = Chain::new();
            if state.input == Input::Open {
                state.input = Input::Closed;
            }
            match state.output {
                Output::Open => state.output = Output::Finishing,
                Output::Connecting => {
                    state.input = Input::Failed(libc::ECANCELED);
                    state.peer_done = true;
                    state.output = Output::Failed(libc::ECANCELED);
                }
                _ => {}
            }
            if mem::replace(&mut state.close_posted, true) {
                return;
            }
            Wakers {
                reader: state.reader.take(),
                writer: state.writer.take(),
                closers: state.closers.take(),
            }
        };
        self.mailbox.post(Command::Close(self.token));
        wakers.wake();
    }

    /// Ends the connection at once with a reset: what was flushed is dropped.
    fn abort(&self) {
        self.mailbox.post(Command::Abort(self.token));
    }

    fn half_gone(&self, mark: impl FnOnce(&mut State)) {
        let both = {
            let mut state = self.state();
            mark(&mut state);
            state.reader_gone && state.writer_gone
        };
        if both {
            self.close();
        }
    }
}

/// The poller's side.
impl Shared {
    /// Bytes have arrived: `push` puts them into the inbox, and is told whether others wait there already, or with the
    /// reader for the rest of a message. Gives the reader, if it has what it waits for.
    #[inline]
    pub(crate) fn deliver(&self, push: impl FnOnce(&mut Chain, bool)) -> (Option<Waker>, Next) {
        let mut state = self.state();
        let before = state.inbox.len();
        let lags = state.lags();
        push(&mut state.inbox, lags);
        if state.expected > 0 {
            state.expected = state.expected.saturating_sub(state.inbox.len() - before);
        }
        if state.discard {
            state.inbox = Chain::new();
            return (None, Next::More);
        }
        let reader = if state.need > 0 && state.inbox.len() >= state.need {
            state.need = 0;
            state.reading.end();
            state.reader.take()
        } else {
            None
        };
        // A reader that waits for more than the watermark must get it.
        let limit = self.input_high_bytes.max(state.need);
        state.stopped = state.inbox.len() >= limit;
        (reader, if state.stopped { Next::Stop } else { Next::More })
    }

    /// There is nothing more to receive: the peer sent its FIN, or the kernel has told a send already that the
    /// connection is broken, which it tells once.
    pub(crate) fn end_input(&self) -> Wakers {
        let output = self.state().output;
        self.fail_input(match output {
            Output::Failed(errno @ (libc::ECONNRESET | libc::ETIMEDOUT)) => Input::Failed(errno),
            _ => Input::Ended,
        })
    }

    /// The connection is broken, for both directions.
    pub(crate) fn fail(&self, errno: i32) -> Wakers {
        let input = self.fail_input(Input::Failed(errno));
        let output = self.fail_output(errno);
        Wakers { writer: output.writer, ..input }
    }

    fn fail_input(&self, how: Input) -> Wakers {
        let mut state = self.state();
        state.peer_done = true;
        if state.input == Input::Open {
            state.input = how;
        }
        state.need = 0;
        Wakers { reader: state.reader.take(), closers: state.closers.take(), writer: None }
    }

    /// Nothing can be sent any more; what was queued is dropped.
    pub(crate) fn fail_output(&self, errno: i32) -> Wakers {
        let mut state = self.state();
        if !matches!(state.output, Output::Failed(_)) {
            state.output = Output::Failed(errno);
        }
        state.outbox = Chain::new();
        state.unsent = 0;
        Wakers { writer: state.writer.take(), closers: state.closers.take(), reader: None }
    }

    /// Moves the outbox to the end of `sending`, and says whether something waits for that to be taken. If there is nothing
    /// to send, what to do: to finish, once, when all is out that ever will be.
    #[inline]
    pub(crate) fn take_output(&self, sending: &mut Chain) -> Result<bool, Outputs> {
        let mut state = self.state();
        state.send_posted = false;
        sending.append(&mut state.outbox);
        if !sending.is_empty() {
            return Ok(state.writer.is_some() || state.output != Output::Open);
        }
        if state.output == Output::Finishing {
            state.output = Output::Finished;
            return Err(Outputs::Finish);
        }
        Err(Outputs::Nothing)
    }

    /// The kernel took `n` bytes of `sending`, which are gone from it already. Gives the writer, if that is what it waits
    /// for.
    #[inline]
    pub(crate) fn sent(&self, n: usize, sending: &mut Chain) -> (Option<Waker>, Next) {
        let mut state = self.state();
        state.unsent = state.unsent.saturating_sub(n);
        sending.append(&mut state.outbox);
        let more = !sending.is_empty() || state.output == Output::Finishing;
        let writer = if state.writer.is_some() && state.unsent <= state.wake_at {
            state.writing.end();
            state.writer.take()
        } else {
            None
        };
        (writer, if more { Next::More } else { Next::Stop })
    }

    /// Ends what is due. `active` is when a byte last moved.
    pub(crate) fn expire(&self, now: Tick, active: Tick) -> Expired {
        let mut state = self.state();
        let idle_until = active.saturating_add(state.idle_timeout).saturating_add(1);
        let mut expired = Expired { idle: idle_until <= now, ..Expired::default() };
        if state.reading.expire(now) {
            state.need = 0;
            expired.wakers.reader = state.reader.take();
        }
        if state.writing.expire(now) {
            expired.wakers.writer = state.writer.take();
        }
        state.armed = idle_until.min(state.reading.until()).min(state.writing.until());
        expired.next = state.armed;
        expired
    }

    /// From how many bytes on a slice is sent without a copy, if any is.
    #[cfg(feature = "zerocopy")]
    pub(crate) fn zerocopy_bytes(&self) -> Option<usize> {
        // Relaxed: a number by itself.
        let threshold = self.zero_copy.threshold.load(Ordering::Relaxed);
        (threshold != u32::MAX).then_some(threshold as usize)
    }

    #[cfg(feature = "zerocopy")]
    fn set_zerocopy_bytes(&self, bytes: Option<usize>) {
        self.zero_copy.threshold.store(threshold(bytes), Ordering::Relaxed);
        self.state().retries_zerocopy = true;
    }

    /// Whether that number was set since the last call.
    #[cfg(feature = "zerocopy")]
    pub(crate) fn retries_zerocopy(&self) -> bool {
        mem::take(&mut self.state().retries_zerocopy)
    }

    #[cfg(feature = "zerocopy")]
    pub(crate) fn zerocopy_pinned_bytes_max(&self) -> usize {
        self.zero_copy.pinned_bytes_max as usize
    }

    /// How long a closed connection may take to send what is left, in ticks.
    pub(crate) fn write_timeout(&self) -> Option<Tick> {
        self.state().writing.timeout()
    }

    /// The connect is under way.
    pub(crate) fn begin_connecting(&self) {
        self.state().output = Output::Connecting;
    }

    /// The connect has succeeded.
    pub(crate) fn connected(&self) -> Wakers {
        let mut state = self.state();
        let finish = state.output == Output::Connecting && state.finish_connected;
        if state.output == Output::Connecting {
            state.output = if finish { Output::Finishing } else { Output::Open };
        }
        if finish && !mem::replace(&mut state.send_posted, true) {
            self.mailbox.post(Command::Send(self.token));
        }
        Wakers { writer: state.writer.take(), ..Wakers::default() }
    }

    /// The engine has let go of the socket.
    pub(crate) fn released(&self) -> Wakers {
        let mut state = self.state();
        state.detached = match state.detached {
            Detached::Wanted => Detached::Done,
            _ => Detached::Gone,
        };
        Wakers { reader: state.reader.take(), closers: state.closers.take(), writer: None }
    }

    /// The poller ends, and the engine has not let go.
    pub(crate) fn abandoned(&self) -> Wakers {
        let wakers = self.fail(libc::ECONNABORTED);
        self.state().detached = Detached::Gone;
        wakers
    }

    /// Whether everything that was flushed has been taken by the kernel, or never will be.
    pub(crate) fn is_sent(&self) -> bool {
        matches!(self.state().output, Output::Finished | Output::Failed(_))
    }

    /// Whether the peer has ended, or the connection is broken.
    pub(crate) fn peer_is_done(&self) -> bool {
        self.state().peer_done
    }

    /// Whether bytes wait for their reader, or with it for the rest of a message.
    #[inline]
    pub(crate) fn lags(&self) -> bool {
        self.state().lags()
    }

    /// The server is shutting down, and so many bytes have arrived that the engine has not delivered yet.
    pub(crate) fn drain(&self, expected: usize) -> Wakers {
        let mut state = self.state();
        state.drain = true;
        state.expected = expected;
        Wakers { reader: state.reader.take(), ..Wakers::default() }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Connection")
            .field("token", &self.token)
            .field("input", &state.input)
            .field("output", &state.output)
            .field("inbox_bytes", &state.inbox.len())
            .field("unsent_bytes", &state.unsent)
            .finish()
    }
}

#[cfg(feature = "zerocopy")]
fn threshold(bytes: Option<usize>) -> u32 {
    bytes.map_or(u32::MAX, saturating)
}

#[cfg(feature = "zerocopy")]
fn saturating(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The error of a call on a connection that this side has closed.
fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection was closed by this side")
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}
