//! What follows from a transition.

use std::io;
use std::task::{Poll, Waker};

use crate::connection::effects::Effects;
use crate::poll::{Deregister, Next};
use crate::timer::Tick;

/// Why a call gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The end of the stream, or of requests.
    Ended,
    Errno(i32),
    /// This side has closed.
    Closed,
    TimedOut,
    NoMemory,
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
            Refusal::NoMemory => {
                let message = "no memory is left for as many bytes as are waited for";
                io::Error::new(io::ErrorKind::OutOfMemory, message)
            }
        }
    }
}

/// How much there is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    /// It goes at the end of the turn, when the kernel's sending path is walked for all connections in a row.
    Little,
    /// It goes at once, while it is in the cache.
    Much,
}

/// What is to be received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Other bytes wait in the inbox already, or with the reader for the rest of a message.
    pub(crate) lags: bool,
    /// Bytes for which the reader waits.
    pub(crate) awaited: usize,
}

/// What came of a poll.
#[derive(Debug)]
#[must_use]
pub(crate) struct Polled {
    pub(crate) result: Poll<Result<(), Refusal>>,
    /// To be polled once more, with a clone of the waker.
    pub(crate) retry: bool,
    /// Bytes that were handed over.
    pub(crate) taken: usize,
    /// There is something to send.
    pub(crate) send: Option<Amount>,
    /// The waker of a wait that is over.
    pub(crate) unused: Option<Waker>,
}

impl Polled {
    pub(crate) fn new() -> Polled {
        Polled { result: Poll::Pending, retry: false, taken: 0, send: None, unused: None }
    }
}

/// What came of bytes that have moved.
#[must_use]
pub(crate) struct Moved {
    /// Who has what it waits for.
    pub(crate) waker: Option<Waker>,
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
