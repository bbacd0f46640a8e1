//! What the engine knows of one registration.

use std::os::fd::BorrowedFd;

use duopoll_core::{Kind, TokenTable};

/// One registered descriptor.
#[derive(Debug)]
pub(crate) struct Socket {
    /// It stays open until the operators are told that it is released.
    pub(crate) fd: BorrowedFd<'static>,
    pub(crate) kind: Kind,
    /// The last event said that something can be read, or accepted, and no call has found the opposite since.
    pub(crate) readable: bool,
    /// A short read does not mean that the socket is empty: the end, an error, or an urgent byte and what follows it
    /// lies behind the bytes.
    pub(crate) stops_short: bool,
    /// A Unix socket, which is received from in messages.
    pub(crate) is_unix: bool,
    /// The operators said stop: nothing is read until they say otherwise.
    pub(crate) stopped: bool,
    /// The socket is in the list of those to be served again.
    pub(crate) listed: bool,
    /// The kernel had no room: the next event for writing tells when it has.
    pub(crate) blocked: bool,
    /// There are events for writing.
    pub(crate) watches_room: bool,
    /// A send was broken off because its budget was spent.
    pub(crate) unsent: bool,
    /// There are more notices in the error queue than one turn has taken.
    pub(crate) more_notices: bool,
    /// The stream has ended or failed: there is nothing to read any more.
    pub(crate) ended: bool,
    /// Something was sent without a copy: notices come through the error queue.
    #[cfg(feature = "zerocopy")]
    pub(crate) sends_zero_copy: bool,
}

impl Socket {
    pub(crate) fn new(fd: BorrowedFd<'static>, kind: Kind, is_unix: bool) -> Socket {
        Socket {
            fd,
            kind,
            readable: false,
            stops_short: false,
            is_unix,
            stopped: false,
            listed: false,
            blocked: false,
            watches_room: !is_unix && kind != Kind::Datagrams,
            unsent: false,
            more_notices: false,
            ended: false,
            #[cfg(feature = "zerocopy")]
            sends_zero_copy: false,
        }
    }
}

/// The registrations.
pub(crate) type Sockets = TokenTable<Socket>;
