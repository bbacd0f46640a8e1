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

mod ending;
#[cfg(test)]
mod exploration;
mod outcome;
mod receiving;
mod request;
mod sending;
mod state;
mod time;

use std::mem;
use std::task::Waker;

pub(crate) use outcome::{Amount, Closing, End, Expected, Expired, Moved, Polled, Refusal};
pub(crate) use request::{Half, Limit, Reason, Wanted};
#[cfg(test)]
pub(crate) use state::Errno;
pub(crate) use state::{Input, Output, Phase, Todo};
use state::{Notes, Serving};
pub(crate) use time::LATE;

use super::effects::Callbacks;
use super::limits::Limits;
use super::peer::Peer;
use super::wait::{Idle, NEVER, Wait};
use crate::buffer::Chain;
use crate::timer::Tick;

pub(crate) struct Lifecycle {
    // The receiving direction.
    pub(crate) inbox: Chain,
    /// Bytes in the inbox that end the reader's wait; 0 if it does not wait.
    need: usize,
    reader: Option<Waker>,
    reading: Wait,
    pub(crate) input: Input,
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
    pub(crate) unsent: usize,
    writer: Option<Waker>,
    /// The writer's wait ends when no more than this is unsent.
    wake_at: u32,
    writing: Wait,
    pub(crate) output: Output,
    notes: Notes,
    /// The poller knows that there is something in the outbox.
    send_posted: bool,
    /// The writer has finished before the connect has.
    finish_connected: bool,
    /// What was flushed was dropped: it was closed before it was connected, or a send has failed.
    cut: bool,

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
    callbacks: Callbacks,
    pub(super) peer: Peer,

    /// Bytes that the kernel has given.
    pub(in crate::connection) received_bytes: u64,
    /// Bytes that it has taken.
    pub(in crate::connection) sent_bytes: u64,

    // Time.
    idle: Idle,
    /// When the poller's timer for this connection fires; `NEVER` if it is not set.
    armed: Tick,
    /// What had come when a wait of the reader was found to be over time: bytes, and one for the end. They come first.
    /// `NOT_ASKED` if nobody has asked.
    late: u32,
    /// A flush was found to be over time, and it was asked whether there is room: what can be sent is sent first.
    late_send: bool,

    /// From when on to send without a copy was set anew: what was given up may be tried again.
    #[cfg(feature = "zerocopy")]
    retries_zerocopy: bool,
}

/// Nobody has asked what had come by a deadline.
const NOT_ASKED: u32 = u32::MAX;

/// As many bytes as a socket holds; more than that are as good as those.
fn few(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).min(NOT_ASKED - 2)
}

impl Lifecycle {
    pub(crate) fn new(limits: &Limits, connecting: bool, now: Tick) -> Lifecycle {
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
            notes: Notes::default(),
            send_posted: false,
            finish_connected: false,
            cut: false,
            phase: Phase::Open,
            todo: Todo::default(),
            told: false,
            counted: true,
            reader_gone: false,
            writer_gone: false,
            detaching: false,
            callbacks: None,
            peer: Peer::Unknown,
            received_bytes: 0,
            sent_bytes: 0,
            idle: Idle::new(limits.idle_timeout, now),
            armed: NEVER,
            late: NOT_ASKED,
            late_send: false,
            #[cfg(feature = "zerocopy")]
            retries_zerocopy: false,
        }
    }

    /// Whether its server is shutting down.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether both directions can still be used, as far as this side knows.
    pub(crate) fn is_active(&self) -> bool {
        let open = self.input == Input::Open && self.output == Output::Open;
        open && self.phase == Phase::Open
    }

    /// Whether this side has closed or aborted it, or nothing else can be done with it.
    pub(crate) fn is_closed(&self) -> bool {
        !matches!(self.phase, Phase::Open | Phase::Leaving) || self.is_aborted()
    }

    /// Whether the poller is still to abort it.
    fn is_aborted(&self) -> bool {
        self.todo.has(Todo::ABORT)
    }

    /// What is to be done, once.
    pub(crate) fn take_todo(&mut self) -> Todo {
        self.told = false;
        mem::take(&mut self.todo)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Notes what the poller is to do.
    fn ask(&mut self, what: Todo) {
        self.todo.add(what);
    }

    /// Whether the poller has to be told to look, after a transition: not if it was told before and has not looked yet.
    #[inline]
    pub(crate) fn must_tell(&mut self) -> bool {
        !self.todo.is_empty() && !mem::replace(&mut self.told, true)
    }

    /// Whether the server is shutting down, and everything that had arrived by then has been delivered.
    pub(crate) fn is_drained(&self) -> bool {
        self.draining && self.expected == 0
    }

    /// Whether what arrives is dropped.
    #[inline]
    pub(crate) fn discards(&self) -> bool {
        self.reader_gone || matches!(self.input, Input::Closed | Input::Failed(_))
    }

    /// Whether a byte has come.
    pub(crate) fn has_received(&self) -> bool {
        self.notes.has(Notes::HAS_RECEIVED)
    }

    /// Whether the peer, or the kernel, has ended it before this side did.
    pub(crate) fn was_ended_by_peer(&self) -> bool {
        self.notes.has(Notes::PEER_FIRST)
    }

    fn is_within_request(&self) -> bool {
        self.serving == Serving::Within
    }
}
