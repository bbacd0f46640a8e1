//! The life of a connection, as plain data.
//!
//! ```text
//!   Open ──▶ Sending ──▶ Lingering ──▶ Deregistered ──▶ Released
//!     │                                     ▲
//!     ├──▶ Leaving (detached) ──────────────┤
//!     └── idle, reset, forced ──────────────┘
//! ```
//!
//! Each transition changes the state and returns what follows from it. Nobody is woken, nothing of a user's is called or
//! dropped, and no engine is told anything in here; the time, and what the engine knows, come in as arguments.
//!
//! The poller is told to look by [`Command`](crate::command::Command)s, and finds what it is to do in
//! [`take_todo`](Lifecycle::take_todo): it is kept here, so no order of commands can lose it.

use std::io;
use std::mem;
use std::task::Poll;

use super::effects::{Closer, Closers, Effects, Offer};
use super::limits::Limits;
use super::wait::{Idle, NEVER, Owner, Wait};
use crate::buffer::{Chain, LinkBuffer};
use crate::clock::Clock;
use crate::poll::{Deregister, Next, Outputs, Pending};
use crate::timer::Tick;

/// A timer that is looked at so much later than it was due says that the poller was held up, in ticks.
pub(crate) const LATE: Tick = 10;

pub(crate) struct Lifecycle {
    // The receiving direction.
    pub(super) inbox: Chain,
    /// Bytes in the inbox that end the reader's wait; 0 if it does not wait.
    need: usize,
    reader: Option<std::task::Waker>,
    reading: Wait,
    pub(super) input: Input,
    /// The peer has ended, or the connection is broken.
    peer_done: bool,
    /// The reader that waits has a part of what it waits for.
    has_part: bool,
    /// The engine was told to stop receiving, since enough waits in the inbox.
    stopped: bool,
    /// Its user wants nothing to be received.
    paused: bool,
    serving: Serving,
    /// The server is shutting down: a connection between two requests is to end.
    draining: bool,
    /// Bytes that had arrived when it began to, and that the engine has not delivered yet.
    expected: u32,

    // The sending direction.
    outbox: Chain,
    /// Bytes flushed that the kernel has not taken: the outbox, and what the poller is sending.
    pub(super) unsent: usize,
    writer: Option<std::task::Waker>,
    /// The writer's wait ends when no more than this is unsent.
    wake_at: u32,
    writing: Wait,
    pub(super) output: Output,
    /// What calls fail with once nothing more can be written, if it is not for the user to know better.
    refusal: Option<Errno>,
    /// The poller knows that there is something in the outbox.
    send_posted: bool,
    /// The writer has finished before the connect has.
    finish_connected: bool,

    // The life.
    phase: Phase,
    todo: Todo,
    /// The poller was told that there is something to do.
    told: bool,
    /// Its poller counts it among those that are open.
    counted: bool,
    reader_gone: bool,
    writer_gone: bool,
    /// Somebody waits for the socket to be taken away from its poller.
    detaching: bool,
    closers: Closers,

    // Time.
    idle: Idle,
    /// When the poller's timer for this connection fires; `NEVER` if it is not set.
    armed: Tick,
    /// What had come when a wait of the reader was found to be over time: bytes, and one for the end. They come first.
    /// `NOT_ASKED` if nobody has asked.
    late: u32,
    /// A flush was found to be over time while there was room: what can be sent is sent first.
    late_send: bool,

    /// From when on to send without a copy was set anew: what was given up may be tried again.
    #[cfg(feature = "zerocopy")]
    retries_zerocopy: bool,
}

/// Nobody has asked what had come by a deadline.
const NOT_ASKED: u32 = u32::MAX;

/// An errno, never 0.
pub(super) type Errno = std::num::NonZeroI32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Input {
    #[default]
    Open,
    /// The peer sent its FIN.
    Ended,
    /// The kernel reported this errno, or the poller has ended.
    Failed(i32),
    /// Closed by this side.
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Output {
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

/// Whether a server handles requests of this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Serving {
    /// None does, or not in this way.
    #[default]
    No,
    /// It waits for the next one.
    Between,
    /// Something may still have to be answered.
    Within,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Closed by this side: what was flushed is being sent.
    Sending,
    /// The FIN is out, or cannot be: waiting for the peer's.
    Lingering,
    /// To be given away when the kernel reads no more from its memory.
    Leaving,
    /// Given back to the engine, which has not released it yet.
    Deregistered {
        /// The socket lives on.
        leaves: bool,
    },
    /// The engine holds nothing of it any more.
    Released {
        /// And whoever waited for that has the socket.
        detached: bool,
    },
}

/// What the poller is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Todo(u8);

impl Todo {
    pub(crate) const RECEIVE: Todo = Todo(1);
    pub(crate) const CLOSE: Todo = Todo(2);
    pub(crate) const ABORT: Todo = Todo(4);
    pub(crate) const DETACH: Todo = Todo(8);
    /// A deadline is earlier than the timer that is set.
    pub(crate) const ARM: Todo = Todo(16);

    pub(crate) fn has(self, what: Todo) -> bool {
        self.0 & what.0 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Why a call gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The end of the stream, or of requests.
    Ended,
    Errno(i32),
    /// This side has closed.
    Closed,
    TimedOut,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        match refusal {
            Refusal::Ended => io::ErrorKind::UnexpectedEof.into(),
            Refusal::Errno(errno) => io::Error::from_raw_os_error(errno),
            Refusal::Closed => {
                let message = "the connection was closed by this side";
                io::Error::new(io::ErrorKind::NotConnected, message)
            }
            Refusal::TimedOut => io::ErrorKind::TimedOut.into(),
        }
    }
}

/// What a reader waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// Bytes, subject to the limits for reading.
    Bytes(Owner),
    /// The next request, which only the idle timeout ends.
    Request,
}

/// How much there is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    /// It goes at the end of the turn, when the kernel's sending path is walked for all connections in a row.
    Little,
    /// It goes at once, while it is in the cache.
    Much,
}

/// From so many bytes on a flush is much.
const MUCH_BYTES: usize = 16 << 10;

/// What came of a poll.
#[derive(Debug)]
#[must_use]
pub(super) struct Polled {
    pub(super) result: Poll<Result<(), Refusal>>,
    /// To be polled once more, with a clone of the waker.
    pub(super) retry: bool,
    /// Bytes that were handed over.
    pub(super) taken: usize,
    /// There is something to send.
    pub(super) send: Option<Amount>,
    /// The waker of a wait that is over.
    pub(super) unused: Option<std::task::Waker>,
}

impl Polled {
    pub(super) fn new() -> Polled {
        Polled { result: Poll::Pending, retry: false, taken: 0, send: None, unused: None }
    }
}

/// What came of bytes that have moved.
#[must_use]
pub(crate) struct Moved {
    /// Who has what it waits for.
    pub(crate) waker: Option<std::task::Waker>,
    pub(crate) next: Next,
    /// The connection is closing, and may have come to its next phase.
    pub(crate) closing: bool,
}

/// What came of looking at a connection's deadlines.
#[must_use]
pub(crate) enum Expired {
    /// Something is due: what has come that was not harvested?
    Ask,
    /// It is closing, and its timer is for that.
    Closing,
    Looked {
        effects: Effects,
        /// No byte has moved for too long.
        idle: bool,
        /// When to look again; `NEVER` if there is nothing to look for.
        next: Tick,
        /// What is due waits for what had come before.
        held: bool,
    },
}

/// How far a connection that is closing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// No further, or it is not closing.
    Stays,
    /// All is sent, and the peer's end is waited for.
    Lingers,
    /// To its end.
    Ends,
}

/// Why a registration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Both sides have ended it, or the peer was waited for long enough.
    Closed,
    /// What was flushed could not be sent in time.
    Unsent,
    Idle,
    /// Its server or its poller ends.
    Forced,
    Aborted,
    Detached,
}

/// The end of a registration.
#[must_use]
pub(crate) struct End {
    pub(crate) how: Deregister,
    /// It was counted among the open ones until now.
    pub(crate) was_open: bool,
    /// It was forced, with something left to do.
    pub(crate) forced: bool,
    pub(crate) effects: Effects,
}

impl Lifecycle {
    pub(super) fn new(limits: &Limits, connecting: bool, now: Tick) -> Lifecycle {
        Lifecycle {
            inbox: Chain::new(),
            need: 0,
            reader: None,
            reading: Wait::new(limits.read_timeout),
            input: Input::Open,
            peer_done: false,
            has_part: false,
            stopped: false,
            paused: false,
            serving: Serving::No,
            draining: false,
            expected: 0,
            outbox: Chain::new(),
            unsent: 0,
            writer: None,
            wake_at: 0,
            writing: Wait::new(limits.write_timeout),
            output: if connecting { Output::Connecting } else { Output::Open },
            refusal: None,
            send_posted: false,
            finish_connected: false,
            phase: Phase::Open,
            todo: Todo::default(),
            told: false,
            counted: true,
            reader_gone: false,
            writer_gone: false,
            detaching: false,
            closers: None,
            idle: Idle::new(limits.idle_timeout, now),
            armed: NEVER,
            late: NOT_ASKED,
            late_send: false,
            #[cfg(feature = "zerocopy")]
            retries_zerocopy: false,
        }
    }

    // What users do.

    /// As [`fill`](Lifecycle::fill), if a wait has ended with what it waited for and there is nothing else to do: the way
    /// that nearly every request takes. Gives how many bytes were handed over.
    #[inline]
    pub(super) fn take_awaited(
        &mut self,
        buffer: &mut LinkBuffer,
        min_bytes: usize,
        is_request: bool,
    ) -> Option<usize> {
        let bytes = self.inbox.len();
        let ended = self.need == 0 && self.reader.is_none() && self.reading.is_none();
        if !ended || self.stopped || buffer.len() + bytes < min_bytes {
            return None;
        }
        buffer.adopt_chain(&mut self.inbox);
        if is_request {
            self.serving = Serving::Within;
        }
        Some(bytes)
    }

    /// Hands over what has arrived, and waits for more if that is too little.
    pub(super) fn fill(
        &mut self,
        buffer: &mut LinkBuffer,
        min_bytes: usize,
        wanted: Wanted,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled { taken: self.inbox.len(), ..Polled::new() };
        buffer.adopt_chain(&mut self.inbox);
        if mem::take(&mut self.stopped) {
            self.ask(Todo::RECEIVE);
        }
        let is_request = matches!(wanted, Wanted::Request);
        let refused = if buffer.len() >= min_bytes {
            None
        } else if self.input == Input::Open {
            let goes_on = match wanted {
                Wanted::Bytes(owner) => self.reading.go_on(owner, || clock.now()),
                Wanted::Request => {
                    self.reading.go_on_exempt();
                    true
                }
            };
            // To whoever waits for a request, no more of them is the end.
            let ends = is_request && buffer.is_empty() && self.is_drained();
            if goes_on && !ends {
                if !offer.keep_in(&mut self.reader) {
                    polled.retry = true;
                    return polled;
                }
                self.need = min_bytes - buffer.len();
                self.has_part = !buffer.is_empty();
                if is_request {
                    self.serving = Serving::Between;
                }
                self.recount(clock);
                self.arm();
                return polled;
            }
            Some(if ends { Refusal::Ended } else { Refusal::TimedOut })
        } else {
            Some(match self.input {
                Input::Failed(errno) => Refusal::Errno(errno),
                Input::Closed => Refusal::Closed,
                Input::Open | Input::Ended => Refusal::Ended,
            })
        };
        if is_request {
            self.serving = Serving::Within;
        }
        polled.unused = self.end_reading(clock);
        polled.result = Poll::Ready(refused.map_or(Ok(()), Err));
        polled
    }

    /// The reader waits no more.
    pub(super) fn end_reading(&mut self, clock: &dyn Clock) -> Option<std::task::Waker> {
        self.need = 0;
        self.reading.end();
        self.late = NOT_ASKED;
        let waker = self.reader.take();
        self.recount(clock);
        waker
    }

    /// A server begins to serve it.
    pub(super) fn serve(&mut self) {
        self.serving = Serving::Within;
    }

    /// As [`flush`](Lifecycle::flush), if there is nothing to wait for and nobody waits: the way that nearly every reply
    /// takes. Says whether there is something new to send; none if it was not done.
    #[inline]
    pub(super) fn flush_at_once(
        &mut self,
        staged: &mut LinkBuffer,
        high: usize,
    ) -> Option<Option<Amount>> {
        let bytes = staged.len() + staged.reserved_len();
        let free = self.writer.is_none() && self.writing.is_none() && !self.idle.is_limited();
        if self.output != Output::Open || !free || self.unsent + bytes > high {
            return None;
        }
        if bytes == 0 {
            return Some(None);
        }
        staged.drain_into(&mut self.outbox);
        self.unsent += bytes;
        Some(self.ask_to_send())
    }

    /// Hands over what is staged. Waits if more than `high` bytes are unsent, until no more than `low` are.
    pub(super) fn flush(
        &mut self,
        staged: &mut LinkBuffer,
        (high, low): (usize, usize),
        owner: Owner,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled::new();
        if let Err(refusal) = self.submit(staged, &mut polled, clock) {
            polled.unused = self.end_writing();
            polled.result = Poll::Ready(Err(refusal));
            return polled;
        }
        // A wait that has begun ends at the low mark, so that it is not for a few bytes only.
        let limit = if self.writer.is_some() { low } else { high };
        let result = if self.unsent <= limit {
            Ok(())
        } else if self.writing.go_on_in_time(owner, || clock.now()) {
            // For the engine to know that somebody waits.
            let begins = self.writer.is_none();
            if !offer.keep_in(&mut self.writer) {
                polled.retry = true;
                return polled;
            }
            if begins {
                polled.send = Some(self.amount());
            }
            self.wake_at = u32::try_from(low).unwrap_or(u32::MAX);
            self.arm();
            return polled;
        } else {
            Err(Refusal::TimedOut)
        };
        polled.unused = self.end_writing();
        polled.result = Poll::Ready(result);
        polled
    }

    /// Hands over what is staged, if that is still possible.
    pub(super) fn submit(
        &mut self,
        staged: &mut LinkBuffer,
        polled: &mut Polled,
        clock: &dyn Clock,
    ) -> Result<(), Refusal> {
        let bytes = staged.len() + staged.reserved_len();
        match self.output {
            Output::Failed(errno) => return Err(Refusal::Errno(errno)),
            Output::Finishing | Output::Finished if bytes > 0 => return Err(self.finished()),
            Output::Connecting if self.finish_connected && bytes > 0 => {
                return Err(self.finished());
            }
            _ => {}
        }
        if bytes > 0 {
            staged.drain_into(&mut self.outbox);
            self.unsent += bytes;
            polled.send = self.ask_to_send();
            self.recount(clock);
            self.arm();
        }
        Ok(())
    }

    fn finished(&self) -> Refusal {
        self.refusal.map_or(Refusal::Closed, |errno| Refusal::Errno(errno.get()))
    }

    /// Waits until the connect has ended.
    pub(super) fn poll_connected(
        &mut self,
        owner: Owner,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled::new();
        let result = match self.output {
            Output::Failed(errno) => Err(Refusal::Errno(errno)),
            Output::Connecting => {
                if self.writing.go_on(owner, || clock.now()) {
                    if !offer.keep_in(&mut self.writer) {
                        polled.retry = true;
                        return polled;
                    }
                    self.wake_at = 0;
                    self.arm();
                    return polled;
                }
                Err(Refusal::TimedOut)
            }
            Output::Open | Output::Finishing | Output::Finished => Ok(()),
        };
        polled.unused = self.end_writing();
        polled.result = Poll::Ready(result);
        polled
    }

    /// The writer waits no more.
    pub(super) fn end_writing(&mut self) -> Option<std::task::Waker> {
        self.writing.end();
        self.late_send = false;
        self.writer.take()
    }

    /// Ends the sending direction behind what was flushed, and what is staged if that is said. Says whether there is
    /// something to send, if only the FIN.
    pub(super) fn finish(
        &mut self,
        staged: Option<&mut LinkBuffer>,
        clock: &dyn Clock,
    ) -> Option<Amount> {
        let mut polled = Polled::new();
        if let Some(staged) = staged {
            // Refused only if it has ended already.
            let _ = self.submit(staged, &mut polled, clock);
        }
        match self.output {
            Output::Open => {
                self.output = Output::Finishing;
                polled.send = polled.send.or(self.ask_to_send());
            }
            Output::Connecting => self.finish_connected = true,
            _ => {}
        }
        polled.send
    }

    /// Ends both directions from this side: what was flushed still goes out, and what is staged if that is said; what
    /// arrives is dropped.
    pub(super) fn close(&mut self, staged: Option<&mut LinkBuffer>, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        if !matches!(self.phase, Phase::Open | Phase::Leaving) {
            return effects;
        }
        self.phase = Phase::Sending;
        // Whoever was taking the socket away has thought better of it.
        self.detaching = false;
        effects.dropped = mem::take(&mut self.inbox);
        if self.input == Input::Open {
            self.input = Input::Closed;
        }
        if self.output == Output::Connecting {
            self.fail(libc::ECANCELED, &mut effects, clock);
            self.input = Input::Failed(libc::ECANCELED);
        } else {
            self.finish(staged, clock);
        }
        let reader = self.end_reading(clock);
        effects.reader = effects.reader.take().or(reader);
        effects.closers = effects.closers.take().or(self.closers.take());
        self.ask(Todo::CLOSE);
        effects
    }

    /// A half is gone. What is left of the connection is closed when the other one is, too.
    pub(super) fn half_gone(&mut self, half: Half, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        match half {
            Half::Reader => {
                self.reader_gone = true;
                effects.dropped = mem::take(&mut self.inbox);
                effects.unused[0] = self.end_reading(clock);
                if mem::take(&mut self.stopped) {
                    // Above the watermark the engine had stopped; now what comes is dropped.
                    self.ask(Todo::RECEIVE);
                }
            }
            Half::Writer => {
                self.writer_gone = true;
                effects.unused[1] = self.end_writing();
            }
        }
        if self.reader_gone && self.writer_gone {
            let unused = mem::take(&mut effects.unused);
            let mut closed = self.close(None, clock);
            closed.dropped.append(&mut effects.dropped);
            closed.unused = unused;
            return closed;
        }
        effects
    }

    /// Ends the connection at once with a reset: what was flushed is dropped.
    pub(super) fn abort(&mut self, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        if !matches!(self.phase, Phase::Deregistered { .. } | Phase::Released { .. }) {
            self.fail(libc::ECONNABORTED, &mut effects, clock);
            self.ask(Todo::ABORT);
        }
        effects
    }

    /// Has the socket taken away from its poller, and waits for that.
    pub(super) fn detach(
        &mut self,
        buffer: &mut LinkBuffer,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled::new();
        let (begins, goes_on) = match self.phase {
            Phase::Open => (!self.detaching, true),
            Phase::Leaving | Phase::Deregistered { leaves: true } => (false, self.detaching),
            _ => (false, false),
        };
        let result = match (self.phase, self.input) {
            (Phase::Released { detached: true }, input) if !matches!(input, Input::Failed(_)) => {
                polled.taken = self.inbox.len();
                buffer.adopt_chain(&mut self.inbox);
                Ok(())
            }
            (_, Input::Failed(errno)) if begins || !goes_on => Err(Refusal::Errno(errno)),
            _ if goes_on => {
                if !offer.keep_in(&mut self.reader) {
                    polled.retry = true;
                    return polled;
                }
                self.need = 0;
                if begins {
                    self.detaching = true;
                    self.ask(Todo::DETACH);
                }
                return polled;
            }
            _ => Err(Refusal::Closed),
        };
        polled.unused = self.end_reading(clock);
        polled.result = Poll::Ready(result);
        polled
    }

    /// Receives nothing until [`resume`](Lifecycle::resume).
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    /// Receives again.
    pub(super) fn resume(&mut self) {
        if mem::take(&mut self.paused) {
            self.ask(Todo::RECEIVE);
        }
    }

    /// Whether both directions can still be used, as far as this side knows.
    pub(super) fn is_active(&self) -> bool {
        let open = self.input == Input::Open && self.output == Output::Open;
        open && self.phase == Phase::Open
    }

    /// Whether this side has closed or aborted it, or nothing else can be done with it.
    pub(super) fn is_closed(&self) -> bool {
        !matches!(self.phase, Phase::Open | Phase::Leaving) || self.todo.has(Todo::ABORT)
    }

    /// Keeps a callback for the end. Gives it back if that has been.
    pub(super) fn on_close(&mut self, closer: Closer) -> Option<Closer> {
        let failed = matches!(self.output, Output::Failed(_));
        let over = matches!(self.phase, Phase::Released { .. });
        if self.input != Input::Open || failed || over {
            return Some(closer);
        }
        self.closers.get_or_insert_default().push(closer);
        None
    }

    /// Changes a limit, and sees to it that a wait that is under way keeps the new one.
    pub(super) fn limit(&mut self, change: Limit, now: Tick) -> Effects {
        let mut effects = Effects::default();
        let past = matches!(change, Limit::WriteDeadline(Some(deadline)) if deadline <= now);
        let ends_flush = past && self.output != Output::Connecting;
        match change {
            Limit::ReadTimeout(timeout) => self.reading.set_timeout(timeout),
            Limit::WriteTimeout(timeout) => self.writing.set_timeout(timeout),
            Limit::ReadDeadline(deadline) => self.reading.set_deadline(deadline),
            Limit::WriteDeadline(deadline) => self.writing.set_deadline(deadline),
            Limit::IdleTimeout(timeout) => {
                let waits = self.waits_for_peer();
                self.idle.set_timeout(timeout, waits, now);
            }
        }
        if self.reader.is_some() && self.need > 0 {
            self.reading.began(now);
        }
        if self.writer.is_some() {
            self.writing.began(now);
            if ends_flush {
                self.writing.expire(now);
                effects.writer = self.writer.take();
            }
        }
        self.arm();
        effects
    }

    // What the poller does.

    /// Whether anything is to be received, and if so whether others wait in the inbox already, or with the reader for the
    /// rest of a message.
    #[inline]
    pub(super) fn receives(&self) -> Option<bool> {
        match self.phase {
            Phase::Open if self.paused => None,
            // Even if it was paused: for the peer's FIN.
            Phase::Open | Phase::Sending | Phase::Lingering => Some(self.lags()),
            Phase::Leaving | Phase::Deregistered { .. } | Phase::Released { .. } => None,
        }
    }

    #[inline]
    pub(super) fn lags(&self) -> bool {
        !self.inbox.is_empty() || (self.need > 0 && self.has_part)
    }

    /// Bytes have arrived: `push` puts them into the inbox, and is told whether others wait already.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        input_high_bytes: usize,
        clock: &dyn Clock,
        push: impl FnOnce(&mut Chain, bool),
    ) -> Moved {
        let before = self.inbox.len();
        let lags = self.lags();
        push(&mut self.inbox, lags);
        if self.expected > 0 || self.late != NOT_ASKED || self.idle.is_limited() {
            self.arrived(self.inbox.len() - before, clock);
        }
        let closing = self.phase != Phase::Open;
        if self.discards() {
            self.inbox = Chain::new();
            return Moved { waker: None, next: Next::More, closing };
        }
        let mut waker = None;
        if self.need > 0 && self.inbox.len() >= self.need {
            self.need = 0;
            self.reading.end();
            self.late = NOT_ASKED;
            waker = self.reader.take();
            self.recount(clock);
        }
        // A reader that waits for more than the watermark must get it.
        self.stopped = self.inbox.len() >= input_high_bytes.max(self.need);
        let stops = self.stopped || (self.paused && !closing);
        Moved { waker, next: if stops { Next::Stop } else { Next::More }, closing }
    }

    #[cold]
    fn arrived(&mut self, bytes: usize, clock: &dyn Clock) {
        self.expected = self.expected.saturating_sub(few(bytes));
        if self.late != NOT_ASKED {
            self.late = self.late.saturating_sub(few(bytes));
        }
        if self.idle.is_limited() {
            self.idle.moved(clock.now());
        }
    }

    /// There is nothing more to receive: the peer sent its FIN, or the kernel has told a send already that the
    /// connection is broken, which it tells once.
    pub(super) fn end_input(&mut self, clock: &dyn Clock) -> Effects {
        let how = match self.output {
            Output::Failed(errno @ (libc::ECONNRESET | libc::ETIMEDOUT)) => Input::Failed(errno),
            _ => Input::Ended,
        };
        let mut effects = Effects::default();
        self.fail_input(how, &mut effects, clock);
        effects
    }

    /// The connection is broken, for both directions.
    pub(super) fn fail(&mut self, errno: i32, effects: &mut Effects, clock: &dyn Clock) {
        self.fail_input(Input::Failed(errno), effects, clock);
        self.fail_output(errno, effects, clock);
    }

    fn fail_input(&mut self, how: Input, effects: &mut Effects, clock: &dyn Clock) {
        self.peer_done = true;
        if self.input == Input::Open {
            self.input = how;
        }
        self.need = 0;
        self.reading.end();
        self.late = NOT_ASKED;
        effects.reader = self.reader.take();
        effects.closers = self.closers.take().or(effects.closers.take());
        self.recount(clock);
    }

    /// Nothing can be sent any more; what was queued is dropped.
    pub(super) fn fail_output(&mut self, errno: i32, effects: &mut Effects, clock: &dyn Clock) {
        if !matches!(self.output, Output::Failed(_)) {
            self.output = Output::Failed(errno);
        }
        effects.dropped.append(&mut self.outbox);
        self.unsent = 0;
        self.writing.end();
        self.late_send = false;
        effects.writer = self.writer.take();
        effects.closers = self.closers.take().or(effects.closers.take());
        self.recount(clock);
    }

    /// Moves the outbox to the end of `sending`, and says whether something waits for that to be taken. If there is nothing
    /// to send, what to do: to finish, once, when all is out that ever will be.
    #[inline]
    pub(super) fn take_output(&mut self, sending: &mut Chain) -> Result<bool, Outputs> {
        self.send_posted = false;
        if matches!(self.phase, Phase::Deregistered { .. } | Phase::Released { .. }) {
            return Err(Outputs::Nothing);
        }
        sending.append(&mut self.outbox);
        if !sending.is_empty() {
            return Ok(self.writer.is_some() || self.output != Output::Open);
        }
        if self.output == Output::Finishing {
            self.output = Output::Finished;
            return Err(Outputs::Finish);
        }
        Err(Outputs::Nothing)
    }

    /// The kernel took `n` bytes of `sending`, which are gone from it already.
    #[inline]
    pub(super) fn sent(
        &mut self,
        n: usize,
        sending: &mut Chain,
        at: impl FnOnce() -> Tick,
    ) -> Moved {
        self.unsent = self.unsent.saturating_sub(n);
        sending.append(&mut self.outbox);
        let more = !sending.is_empty() || self.output == Output::Finishing;
        if self.idle.is_limited() {
            let now = at();
            self.idle.moved(now);
            self.idle.count(self.waits_for_peer(), now);
        }
        let mut waker = None;
        if self.writer.is_some() {
            if self.unsent <= self.wake_at as usize {
                self.writing.end();
                self.late_send = false;
                waker = self.writer.take();
            } else if n > 0 {
                self.writing.progressed();
            }
        }
        let next = if more { Next::More } else { Next::Stop };
        Moved { waker, next, closing: self.phase != Phase::Open }
    }

    /// The connect has succeeded.
    pub(super) fn connected(&mut self, clock: &dyn Clock) -> (Effects, Option<Amount>) {
        let mut send = None;
        if self.output == Output::Connecting {
            let finish = self.finish_connected;
            self.output = if finish { Output::Finishing } else { Output::Open };
            send = if finish { self.ask_to_send() } else { None };
        }
        let effects = Effects { writer: self.end_writing(), ..Effects::default() };
        self.recount(clock);
        self.arm();
        (effects, send)
    }

    /// What is to be done, once.
    pub(super) fn take_todo(&mut self) -> Todo {
        self.told = false;
        mem::take(&mut self.todo)
    }

    /// The poller has seen that it is closed. Says whether it was counted among the open ones.
    pub(super) fn uncount(&mut self) -> bool {
        mem::take(&mut self.counted)
    }

    /// To be given away when nothing of it is with the kernel any more.
    pub(super) fn leave(&mut self) -> bool {
        let open = self.phase == Phase::Open && self.detaching;
        if open {
            self.phase = Phase::Leaving;
        }
        open
    }

    /// Takes a connection that is closing to its next phase, if it has come to the end of one.
    pub(super) fn go_on_closing(&mut self, pinned: bool) -> Closing {
        let is_sent = matches!(self.output, Output::Finished | Output::Failed(_));
        if self.phase == Phase::Sending && is_sent && !pinned {
            self.phase = Phase::Lingering;
            return if self.peer_done { Closing::Ends } else { Closing::Lingers };
        }
        match self.phase {
            Phase::Lingering if self.peer_done => Closing::Ends,
            Phase::Leaving if !pinned => Closing::Ends,
            _ => Closing::Stays,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// How long a closed connection may take to send what is left, in ticks.
    pub(super) fn write_timeout(&self) -> Option<Tick> {
        self.writing.timeout()
    }

    /// Ends the registration; none if it has ended already. `pinned`: the kernel reads from memory of it that it has taken
    /// to send.
    pub(super) fn deregister(
        &mut self,
        reason: Reason,
        pinned: bool,
        clock: &dyn Clock,
    ) -> Option<End> {
        let phase = self.phase;
        if matches!(phase, Phase::Deregistered { .. } | Phase::Released { .. }) {
            return None;
        }
        let how = match (reason, phase) {
            (Reason::Aborted, _) => Deregister::Abort,
            (Reason::Detached, _) | (Reason::Closed, Phase::Leaving) => Deregister::Leave,
            // The kernel may never come to the end of what the peer does not take.
            _ if pinned || self.is_cut() => Deregister::Abort,
            // It has users, who hold on to its socket.
            (_, Phase::Open | Phase::Leaving) => Deregister::Shutdown,
            _ => Deregister::Close,
        };
        let mut effects = Effects::default();
        match reason {
            Reason::Closed | Reason::Detached => {}
            Reason::Unsent | Reason::Idle => self.fail(libc::ETIMEDOUT, &mut effects, clock),
            Reason::Forced | Reason::Aborted => self.fail(libc::ECONNABORTED, &mut effects, clock),
        }
        self.phase = Phase::Deregistered { leaves: how == Deregister::Leave };
        self.recount(clock);
        let forced = matches!(phase, Phase::Open | Phase::Sending | Phase::Leaving);
        Some(End { how, was_open: self.uncount(), forced, effects })
    }

    /// The poller ends: what was flushed still goes out, and nothing else happens any more. False if it is to be ended by
    /// force.
    pub(super) fn wind_up(&mut self, clock: &dyn Clock) -> (Effects, bool) {
        let mut effects = Effects::default();
        let connecting = self.output == Output::Connecting;
        match self.phase {
            Phase::Open | Phase::Leaving if connecting || self.is_within_request() => {
                return (effects, false);
            }
            Phase::Open | Phase::Leaving => {}
            _ => return (effects, true),
        }
        self.phase = Phase::Sending;
        self.detaching = false;
        self.fail_input(Input::Failed(libc::ECONNABORTED), &mut effects, clock);
        self.peer_done = false;
        self.refusal = Errno::new(libc::ECONNABORTED);
        self.finish(None, clock);
        self.recount(clock);
        (effects, true)
    }

    /// The engine has let go of the socket.
    pub(super) fn released(&mut self, clock: &dyn Clock) -> Effects {
        let leaves = matches!(self.phase, Phase::Deregistered { leaves: true });
        let detached = leaves && self.detaching;
        self.phase = Phase::Released { detached };
        let mut effects = Effects { closers: self.closers.take(), ..Effects::default() };
        effects.dropped.append(&mut self.outbox);
        self.unsent = 0;
        if self.input == Input::Open {
            self.input = Input::Closed;
        }
        if matches!(self.output, Output::Open | Output::Connecting | Output::Finishing) {
            // Whoever still waits to have it sent is told.
            let errno = if detached { libc::ENOTCONN } else { libc::ECONNABORTED };
            self.output = Output::Failed(errno);
        }
        effects.reader = self.end_reading(clock);
        effects.writer = self.end_writing();
        effects
    }

    /// The poller ends, and the engine has not let go.
    pub(super) fn abandoned(&mut self, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        self.fail(libc::ECONNABORTED, &mut effects, clock);
        self.phase = Phase::Released { detached: false };
        effects
    }

    /// The server is shutting down, and so many bytes have arrived that the engine has not delivered yet.
    pub(super) fn drain(&mut self, expected: usize) -> Effects {
        self.draining = true;
        self.expected = few(expected);
        // Looks again, and goes on waiting for what it waits for.
        Effects { reader: self.reader.take(), ..Effects::default() }
    }

    /// Ends what is due, but not before what had come by then. Without an answer to what that is, asks for it.
    /// `gives_up`: it was waited for long enough.
    pub(super) fn expire(
        &mut self,
        now: Tick,
        pending: Option<Pending>,
        gives_up: bool,
    ) -> Expired {
        if self.phase != Phase::Open {
            return Expired::Closing;
        }
        let is_due = |until: Tick| until <= now;
        let read_due = is_due(self.reading.until());
        let (mut write_due, mut idle_due) =
            (is_due(self.writing.until()), is_due(self.idle.until()));
        // Not if the timeout was shortened to what has passed already.
        let held_up = self.armed <= now && now - self.armed >= LATE;
        if idle_due && held_up && self.idle.prolong(now) {
            idle_due = false;
        }
        let connecting = self.output == Output::Connecting;
        let asks = (read_due && (self.late == NOT_ASKED || connecting))
            || (write_due && (!self.late_send || connecting))
            || idle_due;
        let receives = self.input == Input::Open && !self.paused && !self.stopped;
        let (mut comes, mut room) = (false, false);
        if asks {
            let Some(pending) = pending else { return Expired::Ask };
            comes = receives && (pending.bytes > 0 || pending.ended);
            if read_due && self.late == NOT_ASKED && !connecting {
                self.late = few(pending.bytes).saturating_add(u32::from(pending.ended));
            }
            // What there is room for is sent, or a connect has ended: its event is on the way.
            room = pending.room && (self.unsent > 0 || connecting);
            if write_due {
                let late = now - self.writing.until() >= LATE;
                write_due = !(room && late && !connecting && self.writing.prolong(now));
                self.late_send = true;
            }
        }
        // A wait is ended by what had come by the time that it was due, a connection is idle if nothing comes at all.
        let awaited = match connecting {
            true => room,
            false => receives && self.late != NOT_ASKED && self.late > 0,
        };
        let hold = |due: bool, held: bool| (due && (gives_up || !held), due && held && !gives_up);
        let (read_ends, read_held) = hold(read_due, awaited);
        let (write_ends, write_held) = hold(write_due, room);
        let (idle, idle_held) = hold(idle_due, comes || room);
        let mut effects = Effects::default();
        if read_ends {
            self.need = 0;
            self.reading.expire(now);
            effects.reader = self.reader.take();
        }
        if write_ends {
            self.writing.expire(now);
            effects.writer = self.writer.take();
        }
        if !read_held {
            self.late = NOT_ASKED;
        }
        self.late_send &= write_held;
        let held = read_held || write_held || idle_held;
        let next = if held { now + 1 } else { self.due() };
        self.armed = next;
        Expired::Looked { effects, idle, next, held }
    }

    #[cfg(feature = "zerocopy")]
    pub(super) fn retry_zerocopy(&mut self) {
        self.retries_zerocopy = true;
    }

    #[cfg(feature = "zerocopy")]
    pub(super) fn takes_retry(&mut self) -> bool {
        mem::take(&mut self.retries_zerocopy)
    }

    // What follows from the state.

    /// Notes what the poller is to do.
    fn ask(&mut self, what: Todo) {
        self.todo.0 |= what.0;
    }

    /// Sees to it that the poller's timer is set for the earliest deadline.
    #[inline]
    fn arm(&mut self) {
        if self.due() < self.armed {
            self.ask(Todo::ARM);
        }
    }

    /// Whether the poller has to be told to look, after a transition: not if it was told before and has not looked yet.
    #[inline]
    pub(super) fn must_tell(&mut self) -> bool {
        !self.todo.is_empty() && !mem::replace(&mut self.told, true)
    }

    /// Has the poller send what there is, unless it knows already.
    #[inline]
    fn ask_to_send(&mut self) -> Option<Amount> {
        let known = mem::replace(&mut self.send_posted, true);
        (!known).then(|| self.amount())
    }

    fn amount(&self) -> Amount {
        if self.unsent >= MUCH_BYTES { Amount::Much } else { Amount::Little }
    }

    /// The earliest deadline there is.
    fn due(&self) -> Tick {
        self.reading.until().min(self.writing.until()).min(self.idle.until())
    }

    /// Whether the server is shutting down, and everything that had arrived by then has been delivered.
    fn is_drained(&self) -> bool {
        self.draining && self.expected == 0
    }

    /// Whether what arrives is dropped.
    fn discards(&self) -> bool {
        self.reader_gone || matches!(self.input, Input::Closed | Input::Failed(_))
    }

    fn is_within_request(&self) -> bool {
        self.serving == Serving::Within
    }

    /// Whether an end now would cut off what the peer is being sent: that must not look like the end of a whole message.
    fn is_cut(&self) -> bool {
        match self.output {
            Output::Finished | Output::Failed(_) | Output::Connecting => false,
            Output::Open | Output::Finishing => {
                self.unsent > 0 || (self.phase == Phase::Open && self.is_within_request())
            }
        }
    }

    /// Whether somebody waits for the peer to send, or to make room.
    fn waits_for_peer(&self) -> bool {
        let reads = self.need > 0 && self.reader.is_some();
        let established = self.phase == Phase::Open && self.output != Output::Connecting;
        (reads || self.unsent > 0) && established
    }

    #[inline]
    fn recount(&mut self, clock: &dyn Clock) {
        if self.idle.is_limited() {
            let waits = self.waits_for_peer();
            if waits != self.idle.counts() {
                self.idle.count(waits, clock.now());
            }
        }
    }
}

/// As many bytes as a socket holds; more than that are as good as those.
fn few(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).min(NOT_ASKED - 2)
}

/// One of the two that make up a connection for its users.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half {
    Reader,
    Writer,
}

/// A limit, and what it is set to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    ReadTimeout(Option<std::time::Duration>),
    WriteTimeout(Option<std::time::Duration>),
    IdleTimeout(Option<std::time::Duration>),
    ReadDeadline(Option<Tick>),
    WriteDeadline(Option<Tick>),
}
