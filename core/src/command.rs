//! What a connection asks of its poller.

use crate::token::Token;

/// Has the poller look at a connection. What is to be done is kept with the connection and nowhere else, so it does not
/// matter in which order commands arrive, nor if some are left twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// There is something to send, at the end of the turn, with what others have to send.
    Send(Token),
    /// There is much to send, which had better go while it is in the cache.
    SendNow(Token),
    /// A timer that somebody on another thread has no use for any more; see [`timers`](crate::timers).
    Forget(Token),
    /// Anything else: to receive again, to end, to be detached, an earlier deadline.
    Look(Token),
}
