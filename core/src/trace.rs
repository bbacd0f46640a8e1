//! What becomes of connections, for whoever listens by `tracing`. Without that feature there is nothing in here.
//!
//! It is told where no lock is held. A subscriber is a user's, and ends nothing by a panic.

#![cfg_attr(not(feature = "tracing"), allow(unused_variables, unused_macros))]

use std::sync::Arc;

#[cfg(feature = "tracing")]
use crate::connection::Control;
use crate::connection::{Reason, Shared};

/// Tells of an event of one connection.
macro_rules! tell {
    ($level:ident, $shared:ident as $connection:ident, $($event:tt)*) => {
        #[cfg(feature = "tracing")]
        if tracing::enabled!(target: "duopoll", tracing::Level::$level) {
            let $connection = Control::new($shared.clone());
            let peer = $connection.peer_addr().map(tracing::field::display);
            crate::contain::report(|| {
                tracing::event!(
                    target: "duopoll",
                    tracing::Level::$level,
                    id = %format_args!("{:#x}", $connection.id()),
                    peer,
                    $($event)*
                );
            });
        }
    };
}

/// It has ended, and why; who has begun with that, and what has broken it, if something has.
pub(crate) fn closed(shared: &Arc<Shared>, reason: Reason) {
    tell!(
        DEBUG,
        shared as connection,
        reason = reason.name(),
        by_peer = reason == Reason::Closed && connection.was_ended_by_peer(),
        error = broken_by(&connection, reason).map(tracing::field::display),
        received_bytes = connection.received_bytes(),
        sent_bytes = connection.sent_bytes(),
        "closed"
    );
}

/// What has broken a connection that this side has not.
#[cfg(feature = "tracing")]
fn broken_by(connection: &Control, reason: Reason) -> Option<std::io::Error> {
    let by_itself = matches!(reason, Reason::Closed | Reason::Unsent);
    connection.broken_by().filter(|_| by_itself)
}

/// A wait has taken too long.
#[cold]
pub(crate) fn timed_out(shared: &Arc<Shared>, reads: bool) {
    tell!(
        DEBUG,
        shared as connection,
        direction = if reads { "read" } else { "write" },
        "timed out"
    );
}

/// Nothing more is received, since enough waits to be read; or no more.
pub(crate) fn holds_peer_up(shared: &Arc<Shared>, holds_up: bool) {
    tell!(TRACE, shared as connection, direction = "read", on = holds_up, "backpressure");
}

/// A writer waits, since enough is unsent; or no more.
pub(crate) fn is_held_up(shared: &Arc<Shared>, held_up: bool) {
    tell!(TRACE, shared as connection, direction = "write", on = held_up, "backpressure");
}
