//! What is known of a socket that is lent.

use std::sync::Arc;

use crate::connection::{Reason, Todo};
use crate::readiness::Readiness;

/// What is known of a socket that is lent.
pub(super) struct Lent {
    pub(super) readiness: Arc<Readiness>,
    pub(super) stage: Stage,
    /// What was asked of the connection meanwhile.
    pub(super) todo: Todo,
    /// It is to end.
    pub(super) end: Option<Reason>,
}

/// Where the descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The engine is about to give it back.
    Leaving,
    /// The engine has, and does not watch it yet.
    Left,
    /// The engine watches it for somebody.
    Watched,
    /// The engine is about to give it back once more.
    Returning,
    /// The engine has, and does not serve it yet.
    Returned,
    /// The engine is about to let go of it for good.
    Ending,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.readiness.end();
    }
}
