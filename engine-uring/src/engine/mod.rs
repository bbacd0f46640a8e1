//! The engine: one ring, what is queued for it, and what has completed.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use duopoll_core::syscalls::{self, EventFd, HAS_ENDED};
use duopoll_core::{
    Capabilities, Deregister, EngineStats, Kind, Notify, Operators, Pending, Poll, Pool, Token,
};
use io_uring::cqueue;
use rustix::event::PollFlags;

use crate::buffers::Buffers;
use crate::features::{Feature, Features};
use crate::plan::{self, Plan};
use crate::ring::Ring;
use crate::socket::{Socket, Sockets};
use crate::unavailable::Unavailable;
use crate::unhandled::Unhandled;
#[cfg(feature = "zerocopy")]
use crate::zerocopy::ZeroCopies;

mod bulk;
mod complete;
mod submit;

/// Completions handled in one turn, at most. What is left is handled in the next, before it waits.
pub const COMPLETIONS_PER_TURN: usize = 128;

/// When an operation has not completed so long after its socket was shut down, it is cancelled.
const CLOSE_GUARD: Duration = Duration::from_secs(5);
/// How long a wait may last that leaves out the completions of sends that nobody waits for: one of them may have been taken
/// in part, and the rest is to be sent. Longer than the kernel's tick, for which it has set its timer anyway.
const QUICK_PATIENCE: Duration = Duration::from_millis(10);

/// [`Poll`] on io_uring.
///
/// Belongs to the thread that made it, since the kernel refuses others:
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<duopoll_uring::Uring>();
/// ```
#[derive(Debug)]
pub struct Uring {
    ring: Ring,
    #[cfg(feature = "zerocopy")]
    allowed: Features,
    features: Features,
    /// Where multishot receives put what comes.
    buffers: Option<Buffers>,
    waker: Arc<EventFd>,
    waker_armed: bool,
    sockets: Sockets,
    /// Sockets that receive, or accept, again with the next submission.
    to_receive: Vec<Token>,
    /// Those of them that come first: the last time others had taken all buffers before them.
    hungry: Vec<Token>,
    /// Sockets that bring so much at once may be polled: [`bulk`].
    large_bytes: usize,
    /// Sockets to be received from by system calls.
    to_read: VecDeque<Token>,
    /// Bytes received in this turn.
    turn_bytes: usize,
    /// The socket that has brought the last of them, and how many it has brought without another between.
    run: (Option<Token>, usize),
    /// Sockets for whose send there was no room in the queue.
    to_send: VecDeque<Token>,
    /// Cancellations for which there was no room.
    to_cancel: VecDeque<u64>,
    /// Sockets that were shut down, and when: oldest first.
    closing: VecDeque<(Instant, Token)>,
    /// Completions that were taken and not handled yet.
    completions: VecDeque<cqueue::Entry>,
    /// What they say of streams, if anybody has asked in this turn.
    unhandled: Unhandled,
    /// The last turn left completions for the next.
    turn_left_more: bool,
    /// It had some.
    turn_told: bool,
    /// Sends that are queued and complete when they are submitted, and their bytes.
    quick_sends: u32,
    quick_bytes: usize,
    #[cfg(feature = "zerocopy")]
    zero_copies: ZeroCopies,
    stats: EngineStats,
}

impl Uring {
    /// A ring of its own, on the calling thread, with what the kernel has proven and `allowed` has. The proof is a
    /// self-test of about a millisecond, made once per process.
    ///
    /// # Errors
    /// [`Unavailable`] says what the kernel refused, the likely cause, and what would help.
    pub fn new(allowed: Features) -> Result<Uring, Unavailable> {
        Uring::with_pool(allowed, Pool::global().clone())
    }

    /// As [`new`](Uring::new), with buffers of this pool.
    ///
    /// # Errors
    /// As there.
    pub fn with_pool(allowed: Features, pool: Pool) -> Result<Uring, Unavailable> {
        let Plan { setup, features } = plan::plan(allowed)?;
        let mut ring = Ring::new(setup).map_err(|error| Unavailable::setup(&error))?;
        let waker = EventFd::new().map_err(|error| Unavailable::step("eventfd", &error))?;
        if features.contains(Feature::NoIowait) {
            ring.wait_without_iowait();
        }
        let buffers = if features.contains(Feature::MultishotReceive) {
            let incremental = features.contains(Feature::IncrementalBuffers);
            let refused = |error| Unavailable::step("io_uring_register", &error);
            Some(Buffers::new(&ring, incremental, pool).map_err(refused)?)
        } else {
            None
        };
        Ok(Uring {
            ring,
            #[cfg(feature = "zerocopy")]
            allowed,
            features,
            buffers,
            waker: Arc::new(waker),
            waker_armed: false,
            sockets: Sockets::default(),
            to_receive: Vec::new(),
            hungry: Vec::new(),
            large_bytes: bulk::LARGE_BYTES,
            to_read: VecDeque::new(),
            turn_bytes: 0,
            run: (None, 0),
            to_send: VecDeque::new(),
            to_cancel: VecDeque::new(),
            closing: VecDeque::new(),
            completions: VecDeque::with_capacity(COMPLETIONS_PER_TURN),
            unhandled: Unhandled::default(),
            turn_left_more: false,
            turn_told: false,
            quick_sends: 0,
            quick_bytes: 0,
            #[cfg(feature = "zerocopy")]
            zero_copies: ZeroCopies::new(),
            stats: EngineStats::default(),
        })
    }

    /// Why nothing can be sent without a copy, if nothing can.
    #[cfg(feature = "zerocopy")]
    fn zerocopy_refusal(&self) -> Option<String> {
        if self.features.contains(Feature::ZeroCopySend) {
            return None;
        }
        let report = plan::probe(self.allowed);
        let seen = report.features.into_iter().find(|seen| seen.feature == Feature::ZeroCopySend);
        let reason = seen.map_or_else(|| "not tested".into(), |seen| seen.reason);
        Some(format!("io_uring cannot send without a copy here: {reason}"))
    }

    /// Gives the kernel buffers.
    fn fill_buffers(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.end_turn();
            buffers.fill();
        }
    }

    /// Whoever is armed first may take every buffer there is, and so would the same one each time.
    fn put_the_hungry_first(&mut self) {
        if !self.hungry.is_empty() {
            self.hungry.append(&mut self.to_receive);
            mem::swap(&mut self.hungry, &mut self.to_receive);
        }
    }

    /// Cancels what has outlived the shutdown of its socket. Says when it is to be called again.
    fn guard_closing(&mut self) -> Option<Duration> {
        while let Some(&(since, token)) = self.closing.front() {
            let left = CLOSE_GUARD.saturating_sub(since.elapsed());
            let closes = self.sockets.get_mut(token).is_some_and(|socket| socket.closing);
            if !left.is_zero() && closes {
                return Some(left);
            }
            self.closing.pop_front();
            if closes {
                self.cancel(token);
            }
        }
        None
    }
}

impl Poll for Uring {
    unsafe fn register<O: Operators>(
        &mut self,
        token: Token,
        fd: RawFd,
        kind: Kind,
        _operators: &mut O,
    ) -> io::Result<()> {
        // SAFETY: it stays open until it is released, as the caller promises.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.sockets.insert(token, Socket::new(fd, kind));
        self.receive_later(token);
        Ok(())
    }

    fn receive<O: Operators>(&mut self, token: Token, _operators: &mut O) {
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.stopped = false;
            self.receive_later(token);
        }
    }

    fn send<O: Operators>(&mut self, token: Token, operators: &mut O) {
        self.queue_send(token, operators);
    }

    fn watch_room(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.wants_room = true;
            self.queue_room(token);
        }
    }

    fn deregister<O: Operators>(&mut self, token: Token, how: Deregister, operators: &mut O) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if mem::replace(&mut socket.closing, true) {
            return;
        }
        let (fd, kind) = (socket.fd, socket.kind);
        let idle = socket.is_idle();
        match how {
            // Either ends what is in flight, now or when it is submitted.
            Deregister::Abort => {
                self.stats.syscalls += 1;
                syscalls::reset(fd);
            }
            Deregister::Close if idle => {}
            Deregister::Close | Deregister::Shutdown => {
                self.stats.syscalls += 1;
                syscalls::shut_down(fd);
                if how == Deregister::Shutdown {
                    syscalls::empty(fd);
                }
            }
            Deregister::Leave => self.cancel(token),
        }
        if matches!(kind, Kind::Watched | Kind::Datagrams) && how != Deregister::Leave {
            // What it watches for goes on when it has happened.
            self.cancel(token);
        }
        if !idle {
            self.closing.push_back((Instant::now(), token));
            self.quick_sends = 0;
        }
        self.release_if_idle(token, operators);
    }

    fn wait<O: Operators>(
        &mut self,
        timeout: Option<Duration>,
        operators: &mut O,
    ) -> io::Result<()> {
        let guard = self.guard_closing();
        self.fill_buffers();
        let lent = self.queue(operators);
        let timeout = timeout.into_iter().chain(guard).min();
        let more = self.turn_left_more || !self.to_read.is_empty();
        let unqueued = !self.waker_armed
            || !self.to_receive.is_empty()
            || !self.to_send.is_empty()
            || !self.to_cancel.is_empty();
        let ready = more
            || unqueued
            || !lent
            || timeout == Some(Duration::ZERO)
            || operators.is_due_sooner();
        self.stats.waits += 1;
        // What completes when it is submitted is not what we wait for.
        let quick = mem::take(&mut self.quick_sends);
        self.quick_bytes = 0;
        if ready {
            self.ring.enter(0, timeout.filter(Duration::is_zero))?;
        } else {
            let patience = (quick > 0).then_some(QUICK_PATIENCE);
            let timeout = timeout.into_iter().chain(patience).min();
            self.ring.enter(quick + 1, timeout)?;
        }
        operators.awake();

        self.stats.completion_overflows += u64::from(self.ring.overflows());
        self.handle_completions(operators);
        self.read_some(operators);
        self.put_the_hungry_first();
        Ok(())
    }

    fn has_more(&mut self) -> bool {
        let listed = !self.to_receive.is_empty();
        // Where the kernel completes when it is entered, it does so a few at a time.
        let to_read = !self.to_read.is_empty();
        self.turn_told || self.turn_left_more || to_read || listed
    }

    fn pending(&mut self, token: Token) -> Pending {
        let Some(socket) = self.sockets.get_mut(token) else { return Pending::default() };
        let (fd, kind, over) = (socket.fd, socket.kind, socket.ended);
        self.stats.syscalls += 1;
        let ready = syscalls::ready(fd);
        let hung_up = ready.intersects(HAS_ENDED);
        let room = hung_up || ready.contains(PollFlags::OUT);
        let mut pending = Pending { room, ..Pending::default() };
        if kind == Kind::Connecting {
            pending.room |= ready.contains(PollFlags::ERR);
            return pending;
        }
        if ready.contains(PollFlags::IN) && !over {
            self.stats.syscalls += 1;
            pending.bytes = syscalls::unread_bytes(fd);
        }
        // Last, since the kernel may complete something in any system call.
        let unhandled = self.unhandled(token);
        pending.bytes += unhandled.bytes;
        pending.room |= unhandled.room;
        pending.ended = !over && (hung_up || unhandled.ended);
        if pending.ended && !unhandled.ended {
            // A receive that goes on may wait for an end that has been already: see `may_miss_the_end`.
            self.cancel_inbound(token);
        }
        pending
    }

    fn waker(&self) -> Arc<dyn Notify> {
        self.waker.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = Capabilities::new("io_uring", self.features.to_string());
        #[cfg(feature = "zerocopy")]
        let capabilities = capabilities.with_zerocopy_refusal(self.zerocopy_refusal());
        capabilities
    }

    fn stats(&self) -> EngineStats {
        let mut stats = self.stats;
        stats.syscalls += self.ring.enters;
        stats
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.sockets.values().any(|socket| socket.inbound.is_some()) {
            // The kernel may still write to them.
            mem::forget(self.buffers.take());
        }
    }
}

fn saturating(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
