//! Sends without a copy (`IORING_OP_SENDMSG_ZC`).
//!
//! Such a send completes twice: once with its result, when the next one may be submitted, and once with a notification,
//! when the kernel reads no more from its memory. Notifications come in any order, long after the result, and after the
//! end of the connection too; so each send has a token of its own. A send that fails is followed by a notification, too.

use duopoll_core::{Token, TokenSlab};

/// `IORING_SEND_ZC_REPORT_USAGE`: the notification says whether the kernel has copied the bytes all the same.
pub(crate) const REPORT_USAGE: u16 = 1 << 3;
/// `IORING_NOTIF_USAGE_ZC_COPIED`: it has.
pub(crate) const COPIED: u32 = 1 << 31;

/// A send without a copy that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ZeroCopy {
    /// The socket that it is of.
    pub(crate) socket: Token,
    /// Its number among those of the socket, once the kernel has taken bytes.
    pub(crate) number: Option<u32>,
    /// Its result has not come yet.
    pub(crate) in_flight: bool,
}

/// The sends of a ring that are not over, by tokens of their own.
pub(crate) type ZeroCopies = TokenSlab<ZeroCopy>;

/// The send of a socket whose result has not come yet. Looks at all of them: for what is rare.
pub(crate) fn in_flight(sends: &ZeroCopies, socket: Token) -> Option<Token> {
    sends.tokens().find(|send| {
        let send = sends.get(*send);
        send.is_some_and(|send| send.in_flight && send.socket == socket)
    })
}
