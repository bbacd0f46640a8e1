//! The engine: one epoll instance, its turns, and what is sent.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

#[cfg(duopoll_faults)]
use duopoll_core::faults;
use duopoll_core::syscalls::{self, EventFd, HAS_ENDED, uninterrupted};
use duopoll_core::{
    Capabilities, Deregister, EngineStats, Kind, Next, Notify, Operators, Outputs, Pending, Poll,
    SEND_VECTORS_MAX, Token,
};
use libc::iovec;
use rustix::event::epoll::{Event, EventData, EventFlags};
use rustix::event::{PollFlags, Timespec};

#[cfg(feature = "zerocopy")]
use crate::notices;
use crate::sockets::{Socket, Sockets};
use crate::sys;
#[cfg(feature = "zerocopy")]
use crate::zerocopy;

mod serve;

/// Events harvested in one turn, at most. Few enough that what they bring is still in the cache when it is handled.
pub const EVENTS_PER_TURN: usize = 64;
/// Bytes read from one socket in one turn before others get theirs.
pub const READ_BUDGET_BYTES: usize = 512 << 10;
/// Bytes that end a turn. Those of small messages seldom come to so many.
pub const TURN_BYTES: u64 = 64 << 10;
/// Bytes sent to one socket in one turn before others get theirs.
const SEND_BUDGET_BYTES: usize = 4 << 20;

/// The data of the waker's event; no token has these bits.
const WAKER: u64 = u64::MAX;

/// What a stream is watched for, once and for all.
const STREAM_EVENTS: EventFlags = EventFlags::IN
    .union(EventFlags::PRI)
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);
/// The same for a Unix socket, until it is full for the first time: the kernel would tell of every message that the peer
/// takes.
const UNIX_EVENTS: EventFlags = STREAM_EVENTS.difference(EventFlags::OUT);
/// The same for datagrams, but for the times when somebody waits for room.
const DATAGRAM_EVENTS: EventFlags = STREAM_EVENTS.difference(EventFlags::OUT);
const LISTENER_EVENTS: EventFlags = EventFlags::IN.union(EventFlags::ET);

const NO_EVENT: Event = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
const NO_VECTOR: iovec = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// [`Poll`] on epoll.
pub struct Epoll {
    epoll: OwnedFd,
    waker: Arc<EventFd>,
    sockets: Sockets,
    /// Sockets that were left before they were empty.
    again: VecDeque<Token>,
    /// Those of the last turn, while they are served.
    serving: VecDeque<Token>,
    events: [Event; EVENTS_PER_TURN],
    /// Those of the events that have not been handled yet.
    left: Range<usize>,
    /// There were as many as a turn takes: the kernel may have more.
    full: bool,
    /// What a send is described by. Here, since it would have to be zeroed for each.
    vectors: [iovec; SEND_VECTORS_MAX],
    stats: EngineStats,
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll")
            .field("epoll", &self.epoll)
            .field("left", &self.left)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Epoll {
    /// A new epoll instance.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE` or `ENOMEM`.
    pub fn new() -> io::Result<Epoll> {
        let epoll = sys::epoll_create()?;
        let waker = Arc::new(EventFd::new()?);
        // Edge-triggered: each write is an event, so the counter need never be read.
        sys::epoll_add(&epoll, waker.as_fd(), EventFlags::IN | EventFlags::ET, WAKER)?;
        Ok(Epoll {
            epoll,
            waker,
            sockets: Sockets::default(),
            again: VecDeque::new(),
            serving: VecDeque::new(),
            events: [NO_EVENT; EVENTS_PER_TURN],
            left: 0..0,
            full: false,
            vectors: [NO_VECTOR; SEND_VECTORS_MAX],
            stats: EngineStats::default(),
        })
    }

    /// Asks the kernel for events, and takes those up again that the turn before has left.
    fn harvest(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        mem::swap(&mut self.again, &mut self.serving);
        let timeout = if self.serving.is_empty() { timeout } else { Some(Duration::ZERO) };
        self.stats.syscalls += 1;
        self.stats.waits += 1;
        let count =
            match sys::epoll_wait(&self.epoll, &mut self.events, timeout.map(timespec).as_ref()) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
        self.left = 0..count;
        self.full = count == EVENTS_PER_TURN;
        Ok(())
    }

    /// Nobody waits for room in a socket for datagrams any more.
    fn ignore_room(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if socket.kind == Kind::Datagrams && mem::take(&mut socket.watches_room) {
            self.stats.syscalls += 1;
            let _ = sys::epoll_modify(&self.epoll, socket.fd, DATAGRAM_EVENTS, token.to_bits());
        }
    }
}

impl Poll for Epoll {
    unsafe fn register<O: Operators>(
        &mut self,
        token: Token,
        fd: RawFd,
        kind: Kind,
        _operators: &mut O,
    ) -> io::Result<()> {
        // SAFETY: it stays open until it is released, as the caller promises.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let is_unix = kind == Kind::Stream && {
            self.stats.syscalls += 1;
            sys::is_unix(fd)
        };
        let events = match kind {
            Kind::Stream if is_unix => UNIX_EVENTS,
            Kind::Stream | Kind::Connecting => STREAM_EVENTS,
            Kind::Listener => LISTENER_EVENTS,
            Kind::Watched => STREAM_EVENTS,
            Kind::Datagrams => DATAGRAM_EVENTS,
        };
        self.stats.syscalls += 1;
        sys::epoll_add(&self.epoll, fd, events, token.to_bits())?;
        self.sockets.insert(token, Socket::new(fd, kind, is_unix));
        Ok(())
    }

    fn receive<O: Operators>(&mut self, token: Token, _operators: &mut O) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        socket.stopped = false;
        if socket.readable && !socket.ended {
            // In the next turn, like everything else that is read: a reader that resumes itself must not starve
            // the others.
            self.serve_again(token);
        }
    }

    #[inline(always)]
    fn send<O: Operators>(&mut self, token: Token, operators: &mut O) {
        let mut budget = SEND_BUDGET_BYTES;
        while let Some(socket) = self.sockets.get_mut(token) {
            if socket.blocked {
                return;
            }
            let fd = socket.fd;
            let (count, bytes, flags) = match operators.outputs(token, &mut self.vectors) {
                Outputs::Vectors { count, bytes, flags, .. } => (count, bytes, flags),
                Outputs::Nothing => return,
                Outputs::Finish => {
                    self.stats.syscalls += 1;
                    syscalls::finish(fd);
                    return;
                }
            };
            #[cfg(feature = "zerocopy")]
            if flags & libc::MSG_ZEROCOPY != 0 && !mem::replace(&mut socket.sends_zero_copy, true) {
                self.stats.syscalls += 2;
                if let Err(error) = zerocopy::enable(fd) {
                    socket.sends_zero_copy = false;
                    match operators.zerocopy_ack(token, Err(error)) {
                        Next::Stop => return,
                        Next::More | Next::Fresh => continue,
                    }
                }
            }
            #[cfg(duopoll_faults)]
            let (count, bytes) = faults::shorten_outputs(&mut self.vectors[..count], bytes);
            self.stats.syscalls += 1;
            let vectors = &self.vectors[..count];
            // SAFETY: the operators keep the vectors valid until the acknowledgement, or the notice.
            let result = uninterrupted(|| unsafe { sys::send(fd, vectors, flags) });
            #[cfg(duopoll_faults)]
            sys::faults::report_again(&self.epoll, fd, STREAM_EVENTS, token.to_bits());
            let taken = *result.as_ref().unwrap_or(&0);
            self.stats.sends += 1;
            self.stats.sent_bytes += taken as u64;
            let would_block = is_would_block(&result);
            if would_block || (result.is_ok() && taken < bytes) {
                self.stats.short_sends += 1;
                if let Some(socket) = self.sockets.get_mut(token) {
                    socket.blocked = true;
                    self.watch_room(token);
                }
            }
            let next = acknowledge(token, result, flags, operators);
            budget = budget.saturating_sub(taken);
            // Whoever has left something new meanwhile has told of it: it goes out in the next turn, with all that comes by then.
            if next != Next::More {
                return;
            }
            if budget == 0 {
                // The rest goes out when the others have had their turn.
                if let Some(socket) = self.sockets.get_mut(token) {
                    socket.unsent = true;
                }
                return self.serve_again(token);
            }
        }
    }

    fn watch_room(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if !mem::replace(&mut socket.watches_room, true) {
            self.stats.syscalls += 1;
            // If there is room by now, this tells of it. Nothing can fail: the socket is watched already.
            let _ = sys::epoll_modify(&self.epoll, socket.fd, STREAM_EVENTS, token.to_bits());
        }
    }

    fn deregister<O: Operators>(&mut self, token: Token, how: Deregister, operators: &mut O) {
        let Some(socket) = self.sockets.remove(token) else { return };
        self.stats.syscalls += 1;
        // ENOENT or EBADF: somebody else has closed the descriptor, and the kernel has forgotten it.
        let _ = sys::epoll_del(&self.epoll, socket.fd);
        match how {
            Deregister::Close | Deregister::Leave => {}
            Deregister::Shutdown => {
                self.stats.syscalls += 1;
                syscalls::shut_down(socket.fd);
                syscalls::empty(socket.fd);
            }
            Deregister::Abort => {
                self.stats.syscalls += 1;
                syscalls::reset(socket.fd);
            }
        }
        #[cfg(feature = "zerocopy")]
        if socket.sends_zero_copy {
            // The last chance to hear of them. A reset has the kernel give up what it held.
            while notices::take(token, socket.fd, operators) {}
        }
        // SAFETY: every call is over before the next begins, and the socket is not watched any more.
        unsafe { operators.released(token) };
    }

    fn wait<O: Operators>(
        &mut self,
        timeout: Option<Duration>,
        operators: &mut O,
    ) -> io::Result<()> {
        if self.left.is_empty() && self.serving.is_empty() {
            self.harvest(timeout)?;
        }
        operators.awake();
        let end = self.stats.received_bytes + TURN_BYTES;
        while let Some(index) = self.left.next() {
            self.handle(self.events[index], operators);
            if self.stats.received_bytes >= end {
                return Ok(());
            }
        }
        while let Some(token) = self.serving.pop_front() {
            self.serve(token, operators);
            if self.stats.received_bytes >= end {
                return Ok(());
            }
        }
        Ok(())
    }

    fn has_more(&mut self) -> bool {
        let listed = !self.serving.is_empty() || !self.again.is_empty();
        self.full || listed || !self.left.is_empty()
    }

    fn pending(&mut self, token: Token) -> Pending {
        let Some(socket) = self.sockets.get_mut(token) else { return Pending::default() };
        self.stats.syscalls += 1;
        let ready = syscalls::ready(socket.fd);
        let hung_up = ready.intersects(HAS_ENDED);
        let room = hung_up || ready.contains(PollFlags::OUT);
        let mut pending = Pending { room, ..Pending::default() };
        if socket.kind == Kind::Connecting {
            pending.room |= ready.contains(PollFlags::ERR);
            return pending;
        }
        if socket.ended || !(hung_up || ready.contains(PollFlags::IN)) {
            return pending;
        }
        self.stats.syscalls += 1;
        pending.bytes = syscalls::unread_bytes(socket.fd);
        pending.ended = hung_up || pending.bytes == 0;
        socket.readable = true;
        if !socket.stopped {
            self.serve_again(token);
        }
        pending
    }

    fn waker(&self) -> Arc<dyn Notify> {
        self.waker.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = Capabilities::new("epoll", "edge-triggered");
        #[cfg(feature = "zerocopy")]
        let capabilities = capabilities.with_zerocopy_refusal(zerocopy::refusal());
        capabilities
    }

    fn stats(&self) -> EngineStats {
        self.stats
    }
}

#[inline]
fn acknowledge<O: Operators>(
    token: Token,
    result: io::Result<usize>,
    flags: i32,
    operators: &mut O,
) -> Next {
    #[cfg(feature = "zerocopy")]
    if flags & libc::MSG_ZEROCOPY != 0 {
        return operators.zerocopy_ack(token, result);
    }
    let _ = flags;
    operators.output_ack(token, result)
}

/// For epoll_wait, which takes no more than so many milliseconds, and rounds up.
fn timespec(timeout: Duration) -> Timespec {
    let timeout = timeout.min(Duration::from_millis(i32::MAX as u64));
    Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() }
}

#[inline]
fn is_would_block(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(all(test, not(duopoll_faults)))]
mod tests;
