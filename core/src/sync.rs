//! The primitives that are shared between threads, from `std`, or from `loom` when a model checks them.

#[cfg(not(loom))]
mod imp {
    pub(crate) use std::sync::Arc;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

    #[cfg(not(miri))]
    pub(crate) use parking_lot::{Mutex, MutexGuard};
    // Where pointers must not be made of numbers.
    #[cfg(miri)]
    pub(crate) use std::sync::{Mutex, MutexGuard};
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
}

pub(crate) use imp::*;

/// Stands for the bytes of a block, which a model cannot watch: it is told when they are read, and when they are
/// about to be written anew. Costs nothing outside of models.
#[derive(Default)]
pub(crate) struct Witness {
    #[cfg(loom)]
    bytes: loom::cell::UnsafeCell<()>,
}

impl Witness {
    #[inline]
    pub(crate) fn read(&self) {
        #[cfg(loom)]
        self.bytes.with(|_| ());
    }

    #[inline]
    pub(crate) fn written(&self) {
        #[cfg(loom)]
        self.bytes.with_mut(|_| ());
    }
}

/// After the last count was released: what others did before they released theirs has happened.
#[inline]
pub(crate) fn acquire(count: &AtomicUsize) {
    if cfg!(duopoll_tsan) {
        // ThreadSanitizer knows nothing of fences.
        count.load(Ordering::Acquire);
    } else {
        fence(Ordering::Acquire);
    }
}

/// Locks a mutex. Critical sections never leave what it guards half-changed, so a panic in one carries no news.
#[cfg(not(any(loom, miri)))]
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// As above.
#[cfg(any(loom, miri))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
