//! Which pool the poller of this thread looks after: what its connections have used lately may wait for longer there, since the poller
//! looks again in a while.

use std::cell::Cell;
use std::ptr;

thread_local! {
    /// By its address.
    static STORE: Cell<*const ()> = const { Cell::new(ptr::null()) };
}

pub(super) fn keeps<S>(store: &S) -> bool {
    ptr::eq(STORE.get(), ptr::from_ref(store).cast())
}

pub(super) fn keep<S>(store: &S) {
    STORE.set(ptr::from_ref(store).cast());
}

pub(super) fn let_go() {
    STORE.set(ptr::null());
}
