//! What becomes of connections, for whoever listens by `tracing`. Without that feature there is nothing in here.
//!
//! It is told where no lock is held. A subscriber is a user's, and ends nothing by a panic.

#![cfg_attr(not(feature = "tracing"), allow(unused_variables, dead_code))]

use std::io;
use std::net::SocketAddr;

/// What is told of.
pub(crate) trait Subject {
    fn id(&self) -> u64;
    fn peer(&self) -> Option<SocketAddr>;
}

/// How a connection has ended.
pub(crate) struct Ended {
    pub(crate) reason: &'static str,
    /// The peer, or the kernel, has begun with that.
    pub(crate) by_peer: bool,
    /// What has broken it, if something has.
    pub(crate) error: Option<io::Error>,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

/// Tells of an event of one connection.
macro_rules! tell {
    ($level:ident, $subject:ident, $($event:tt)*) => {
        // Who may be asked whether he listens is a user, too.
        #[cfg(feature = "tracing")]
        if tracing::Level::$level <= tracing::level_filters::LevelFilter::current() {
            crate::contain::report(|| {
                tracing::event!(
                    target: "duopoll",
                    tracing::Level::$level,
                    id = %format_args!("{:#x}", $subject.id()),
                    peer = $subject.peer().map(tracing::field::display),
                    $($event)*
                );
            });
        }
    };
}

pub(crate) fn closed(subject: &impl Subject, ended: impl Fn() -> Ended) {
    #[cfg(feature = "tracing")]
    if tracing::Level::DEBUG <= tracing::level_filters::LevelFilter::current() {
        let Ended { reason, by_peer, error, received_bytes, sent_bytes } = ended();
        let error = error.as_ref().map(tracing::field::display);
        tell!(DEBUG, subject, reason, by_peer, error, received_bytes, sent_bytes, "closed");
    }
}

/// A wait has taken too long.
#[cold]
pub(crate) fn timed_out(subject: &impl Subject, reads: bool) {
    tell!(DEBUG, subject, direction = if reads { "read" } else { "write" }, "timed out");
}

/// Nothing more is received, since enough waits to be read; or no more.
pub(crate) fn holds_peer_up(subject: &impl Subject, holds_up: bool) {
    tell!(TRACE, subject, direction = "read", on = holds_up, "backpressure");
}

/// A writer waits, since enough is unsent; or no more.
pub(crate) fn is_held_up(subject: &impl Subject, held_up: bool) {
    tell!(TRACE, subject, direction = "write", on = held_up, "backpressure");
}
