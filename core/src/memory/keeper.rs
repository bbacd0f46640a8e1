//! Which pool the poller of this thread looks after: what its connections have used lately may wait for longer there, since the poller
//! looks again in a while.

use std::cell::Cell;
use std::ptr;

thread_local! {
    /// By its address.
    static STORE: Cell<*const ()> = const { Cell::new(ptr::null()) };
    /// It has let more wait than may wait for good, and has promised to look again.
    static PROMISED: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn keeps<S>(store: &S) -> bool {
    ptr::eq(STORE.get(), ptr::from_ref(store).cast())
}

pub(super) fn keep<S>(store: &S) {
    STORE.set(ptr::from_ref(store).cast());
}

/// Says whether it had promised to look again.
pub(super) fn let_go() -> bool {
    STORE.set(ptr::null());
    PROMISED.replace(false)
}

pub(super) fn has_promised() -> bool {
    PROMISED.get()
}

/// It promises to look again, or need not any more. Says whether that is new.
pub(super) fn promise(looks_again: bool) -> bool {
    PROMISED.replace(looks_again) != looks_again
}
