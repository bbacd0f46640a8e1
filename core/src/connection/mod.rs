//! The state of a connection, between its engine and its users.
//!
//! ```text
//!   engine ──▶ receive buffer ──▶ inbox ══▶ Reader's own LinkBuffer ──▶ user
//!   engine ◀── sending ◀───────── outbox ◀══ Writer's own LinkBuffer ◀── user
//!              poller's own         ▲
//!                             under the lock; ══ moves the whole in O(1)
//! ```
//!
//! The inbox and the outbox are all that is shared. Parsing and building messages happens in buffers of the halves'
//! own, I/O in buffers of the poller's own, and neither takes the lock.
//!
//! What a connection is lies in one value, [`lifecycle`], and whatever happens to it is a transition of that value.

mod control;
mod effects;
mod lifecycle;
mod limits;
mod peer;
mod reader;
mod requests;
#[cfg(all(test, not(loom)))]
mod rivals;
mod sender;
mod shared;
mod socket;
#[cfg(all(test, not(loom)))]
mod spies;
mod wait;
mod watch;
mod writer;

use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use control::{CallbackId, Control};
pub(crate) use effects::wake;
pub(crate) use lifecycle::{Closing, Expected, Expired, LATE, Moved, Phase, Reason, Todo};
pub use limits::Limits;
pub use reader::Reader;
pub use requests::Requests;
pub use sender::Sender;
pub(crate) use shared::Shared;
pub(crate) use wait::NEVER;
pub use watch::Watch;
pub use writer::{Writer, WriterSeam};

use crate::mailbox::Mailbox;
use crate::token::Token;

/// The two halves of a new connection, and what the poller keeps. `serial`: its number, whose lower bits the token has;
/// `connecting`: its connect is under way.
pub(crate) fn pair(
    socket: Option<OwnedFd>,
    mailbox: Arc<Mailbox>,
    token: Token,
    serial: u64,
    limits: &Limits,
    connecting: bool,
) -> (Arc<Shared>, Reader, Writer) {
    let shared = Arc::new(Shared::new(socket, mailbox, token, serial, limits, connecting));
    (shared.clone(), Reader::new(shared.clone()), Writer::new(shared))
}
