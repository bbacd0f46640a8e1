//! Scripts: what the user and the peer do, and what must come of it.

use std::io::ErrorKind;

use crate::author::Author;
use crate::support::{Family, Pattern};

/// What a connection may hold if it is tight, in bytes; see `Limits`.
pub(crate) const TIGHT_INPUT_BYTES: usize = 16 << 10;
pub(crate) const TIGHT_OUTPUT_BYTES: usize = 64 << 10;

#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) place: Place,
    /// Small limits and small socket buffers.
    pub(crate) tight: bool,
    /// On a server of its own, which is shut down.
    pub(crate) alone: bool,
    pub(crate) steps: Vec<Planned>,
}

/// A step, and what must come of it if it has a result.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) step: Step,
    pub(crate) expected: Option<Outcome>,
}

/// Where the user is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a server's callbacks, on the poller's thread.
    Served,
    /// On a thread of its own, with a connection that it has dialed.
    Dialed,
    /// The same, with the halves taken apart.
    Halves,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The user begins to read, at this offset of what the peer sends.
    Read(u64, ReadOp),
    /// The read has come to its end.
    ReadDone,
    /// The read was cut off by the end of its poller: it has failed, or was dropped before it could.
    ReadCutOff,
    /// The user begins to write, at this offset of what it sends.
    Write(u64, WriteOp),
    WriteDone,
    /// Done from another thread than the user's.
    Control(ControlOp),
    /// The user has begun what it was told before, and the poller has done what came of it.
    Barrier,
    Peer(PeerOp),
    /// The user's callback returns, or the user lets go of the connection.
    Leave(Leave),
    /// A callback is called.
    Called,
    IsActive,
    Detached {
        at: u64,
        unread: usize,
        reply: (u64, usize),
    },
    /// The server begins to shut down, with so much grace in milliseconds.
    Shutdown(u64),
    ShutdownDone,
    /// Nothing is left, and so often was the user told of the end.
    Over,
}

#[derive(Clone, Debug)]
pub(crate) enum ReadOp {
    Fill(usize),
    Next(usize),
    Peek(usize),
    Skip(usize),
    SplitTo(usize),
    U8,
    U32,
    Until {
        delimiter: u8,
        max_bytes: usize,
    },
    /// One call of `read`.
    Read(usize),
    /// As many as bring so many bytes, or the end.
    ReadAll(usize),
    More,
    /// The length of what was handed over.
    Buffered,
    /// Polls a future so often and drops it.
    Abandon(u32, Box<ReadOp>),
    /// Polls futures so often, each once, and then awaits one, unless a poll was enough.
    Insist(u32, Box<ReadOp>),
    Control(ControlOp),
    /// Drops the half.
    Drop,
}

#[derive(Clone, Debug)]
pub(crate) enum WriteOp {
    Write(usize),
    Push(usize),
    PushOwned(usize),
    Append(usize),
    /// Reserves the one and commits the other.
    Commit(usize, usize),
    Flush,
    Drain,
    /// Polls the flush so often and drops it.
    AbandonFlush(u32),
    AbandonDrain(u32),
    Unsent,
    Finish,
    Drop,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum ControlOp {
    ReadTimeout(Option<u64>),
    WriteTimeout(Option<u64>),
    IdleTimeout(Option<u64>),
    ReadDeadline(Option<Moment>),
    WriteDeadline(Option<Moment>),
    Pause,
    Resume,
    Close,
    Abort,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    Past,
    /// In so many milliseconds.
    In(u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum PeerOp {
    /// Sends from this offset on, behind what it was told before. Nobody waits for it.
    Send(u64, usize),
    /// Ends its sending direction, behind that.
    Finish,
    /// Reads, at this offset.
    Read(u64, usize),
    /// Reads to the end, from this offset.
    ReadToEnd(u64),
    /// Closes with a reset, where the family knows one.
    Reset,
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Normally,
    WithError,
    WithPanic,
    /// Takes the socket out.
    Detach,
}

/// What has come of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// So many of the right bytes, from this offset on.
    Bytes(u64, usize),
    Value(u64),
    Failed(ErrorKind, Option<i32>),
    /// A send that was under way when the connection broke has failed: `ECONNRESET` or `EPIPE`. The kernel tells of a
    /// reset once, as `ECONNRESET`, and whoever asks later gets `EPIPE`. If a send and a receive wait at the same
    /// time, either may be the first.
    Broken,
    /// A future was dropped before it was ready.
    Dropped,
    /// The peer has read to the end, so many bytes in all.
    End(u64, PeerEnd),
    Called(&'static str),
    /// Bytes that are not those that were sent.
    Wrong(String),
    /// It did not happen within any patience.
    Stuck,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerEnd {
    Fin,
    Reset,
    Other,
}

impl Script {
    pub(crate) fn new(seed: u64, family: Family) -> Script {
        Author::new(seed, family).write()
    }
}

pub(crate) fn peers_bytes(seed: u64, at: u64) -> Pattern {
    pattern_at(seed, at)
}

pub(crate) fn users_bytes(seed: u64, at: u64) -> Pattern {
    pattern_at(!seed, at)
}

fn pattern_at(seed: u64, at: u64) -> Pattern {
    let mut pattern = Pattern::new(seed);
    let mut left = at as usize;
    while left > 0 {
        left -= pattern.next(left).len();
    }
    pattern
}

impl ReadOp {
    /// What it gives if there are `n` bytes for it.
    pub(crate) fn success(&self, at: u64, n: usize) -> Outcome {
        match self {
            ReadOp::Fill(_) | ReadOp::Skip(_) => Outcome::Done,
            ReadOp::More => Outcome::Value(1),
            _ => Outcome::Bytes(at, n),
        }
    }

    pub(crate) fn consumes(&self, n: usize) -> usize {
        match self {
            ReadOp::Fill(_) | ReadOp::Peek(_) | ReadOp::More => 0,
            _ => n,
        }
    }
}
