//! What belongs to a user, and may panic.

use std::any::Any;
use std::mem;
use std::panic::{self, AssertUnwindSafe};

/// Does what is a user's, who must not end whoever does it: a panic is left to the panic hook. False if there was one.
#[inline]
pub fn contain(call: impl FnOnce()) -> bool {
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(()) => true,
        Err(payload) => {
            end(payload);
            false
        }
    }
}

/// The payload of a panic may panic as well, as it is dropped.
#[cold]
fn end(payload: Box<dyn Any + Send>) {
    mem::forget(panic::catch_unwind(AssertUnwindSafe(|| drop(payload))));
}
