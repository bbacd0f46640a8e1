//! What is behind a token.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::stream::Stream;
use crate::readiness::Readiness;
use crate::timer::Tick;
use crate::token::Token;

/// When accepting is tried again after the process or the machine ran out of something, in milliseconds: doubled
/// from the first to the last.
pub(super) const ACCEPT_RETRY_MS: (Tick, Tick) = (5, 640);

pub(super) enum Slot {
    Stream(Stream),
    Listener(Listener),
    Watched(Watched),
}

pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) retry_ms: Tick,
    pub(super) paused: bool,
    pub(super) deregistered: bool,
}

impl Listener {
    pub(super) fn new(socket: OwnedFd) -> Listener {
        Listener { socket, retry_ms: ACCEPT_RETRY_MS.0, paused: false, deregistered: false }
    }
}

/// A descriptor that is watched, and what is known of it.
pub(super) struct Watched {
    /// Stays open until it is released.
    _fd: OwnedFd,
    pub(super) readiness: Arc<Readiness>,
    pub(super) deregistered: bool,
}

impl Watched {
    pub(super) fn new(fd: OwnedFd, readiness: Arc<Readiness>) -> Watched {
        Watched { _fd: fd, readiness, deregistered: false }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// A connection that was accepted, and by which listener.
#[derive(Debug)]
pub struct Accepted {
    /// The listener.
    pub listener: Token,
    /// The connection.
    pub socket: OwnedFd,
}
