//! What belongs to a user, and may panic.

use std::any::Any;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Panics that were contained, in this process.
static CONTAINED: AtomicU64 = AtomicU64::new(0);

/// Does what is a user's, who must not end whoever does it: a panic is left to the panic hook, counted, and logged as that of
/// `what`. False if there was one.
#[inline]
pub fn contain(what: &'static str, call: impl FnOnce()) -> bool {
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(()) => true,
        Err(payload) => {
            end(what, payload);
            false
        }
    }
}

/// As [`contain`], for a task, whose panics are its poller's to count.
#[inline]
pub(crate) fn contain_task(run: impl FnOnce()) -> bool {
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(()) => true,
        Err(payload) => {
            report(|| log::error!("a task has panicked"));
            forget(payload);
            false
        }
    }
}

/// The same, for who wants to know what the panic was about.
#[inline]
pub(crate) fn caught<T>(what: &'static str, call: impl FnOnce() -> T) -> thread::Result<T> {
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    if result.is_err() {
        count(what);
    }
    result
}

/// Panics that were contained, in this process.
pub fn contained_panics() -> u64 {
    CONTAINED.load(Ordering::Relaxed)
}

/// The payload of a panic may panic as well, as it is dropped.
#[cold]
fn end(what: &'static str, payload: Box<dyn Any + Send>) {
    count(what);
    forget(payload);
}

fn forget(payload: Box<dyn Any + Send>) {
    mem::forget(panic::catch_unwind(AssertUnwindSafe(|| drop(payload))));
}

#[cold]
fn count(what: &'static str) {
    CONTAINED.fetch_add(1, Ordering::Relaxed);
    report(|| log::error!("{what} has panicked"));
}

/// Tells the log something. The logger is a user's, too, and may not end whoever tells it.
pub fn report(tell: impl FnOnce()) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(tell)) {
        CONTAINED.fetch_add(1, Ordering::Relaxed);
        forget(payload);
    }
}
