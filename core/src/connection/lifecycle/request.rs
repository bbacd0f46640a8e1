//! What is asked of a connection.

use std::time::Duration;

use crate::connection::wait::Owner;
use crate::timer::Tick;

/// What a reader waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// Bytes, subject to the limits for reading.
    Bytes(Owner),
    /// More bytes of the message that the reader has begun to wait for.
    Rest,
    /// The next request, which only the idle timeout ends.
    Request,
    /// Whatever comes, for a layer above that always waits: neither limits nor a shutdown end it, only the idle timeout does.
    Whatever,
}

/// One of the two that make up a connection for its users.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    Reader,
    Writer,
}

/// A limit, and what it is set to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    ReadTimeout(Option<Duration>),
    WriteTimeout(Option<Duration>),
    IdleTimeout(Option<Duration>),
    ReadDeadline(Option<Tick>),
    WriteDeadline(Option<Tick>),
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

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::Unsent => "unsent",
            Reason::Idle => "idle",
            Reason::Forced => "forced",
            Reason::Aborted => "aborted",
            Reason::Detached => "detached",
        }
    }
}
