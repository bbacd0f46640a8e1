//! Polls of futures that are a user's, and may panic.

use std::panic::{self, AssertUnwindSafe};
use std::task::Poll;
use std::thread;

/// Polls a future; a panic in it becomes an error. It is not polled again then, and what it was working on ends with
/// it.
#[inline]
pub(crate) fn caught<T>(poll: impl FnOnce() -> Poll<T>) -> Poll<thread::Result<T>> {
    match panic::catch_unwind(AssertUnwindSafe(poll)) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}
