//! A lock that is free of charge on the thread that owns it.
//!
//! Nearly every connection is used by its poller's thread alone, and a mutex costs that thread two atomic
//! read-modify-writes each time, which was a quarter of what the library added to an echo. So the owner enters without one,
//! until the first other thread comes. That one asks the kernel for a barrier on every processor that runs this process,
//! waits until the owner has left, and from then on all of them take the mutex.
//!
//! ```text
//!   owner                          another thread, with the mutex
//!   ─────                          ──────────────────────────────
//!   inside = true                  shared = true
//!   (nothing but program order)    membarrier(2)
//!   shared? then the mutex         inside? then wait
//! ```
//!
//! Either the owner sees `shared`, or the other sees `inside`: the kernel's barrier is one for both of them.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, Witness, barrier, lock, yield_now};

/// A value behind such a lock.
pub(crate) struct Confined<T> {
    /// The owner has entered, and not through the mutex. Written by the owner alone.
    inside: AtomicBool,
    /// The mutex counts. Never taken back.
    shared: AtomicBool,
    mutex: Mutex<()>,
    witness: Witness,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time, and may move between them.
unsafe impl<T: Send> Send for Confined<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Confined<T> {}

impl<T> Confined<T> {
    /// With a mutex from the beginning, unless the kernel has the barrier.
    pub(crate) fn new(value: T, confined: bool) -> Confined<T> {
        Confined {
            inside: AtomicBool::new(false),
            shared: AtomicBool::new(!confined),
            mutex: Mutex::new(()),
            witness: Witness::default(),
            value: UnsafeCell::new(value),
        }
    }

    /// Locks it.
    ///
    /// # Safety
    /// `owner` is said by one thread at a time, and whoever says it next has seen all that the last one did.
    ///
    /// # Panics
    /// If the owner is inside already, where a mutex would wait for ever.
    #[inline]
    pub(crate) unsafe fn lock(&self, owner: bool) -> Guard<'_, T> {
        if owner {
            // Relaxed: its own.
            assert!(!self.inside.load(Ordering::Relaxed), "locked by the same thread");
            self.inside.store(true, Ordering::Relaxed);
            barrier::light();
            // Relaxed: if it is set, the mutex orders the rest.
            if !self.shared.load(Ordering::Relaxed) {
                self.witness.written();
                return Guard { lock: self, mutex: None };
            }
            self.leave();
        }
        self.lock_shared()
    }

    /// Nothing but the mutex counts from now on. For the owner, who needs no barrier for it.
    ///
    /// # Panics
    /// If the owner is inside.
    ///
    /// # Safety
    /// As for the owner's [`lock`](Confined::lock).
    pub(crate) unsafe fn share(&self) {
        assert!(!self.inside.load(Ordering::Relaxed), "shared while it is locked");
        // Release: what the owner has done is seen by who finds the mutex to count.
        self.shared.store(true, Ordering::Release);
    }

    #[cold]
    fn lock_shared(&self) -> Guard<'_, T> {
        let mutex = lock(&self.mutex);
        // Acquire: see `share`. Otherwise set under the mutex.
        if !self.shared.load(Ordering::Acquire) {
            self.shared.store(true, Ordering::Relaxed);
            barrier::heavy();
            // Acquire: pairs with the release in `leave`.
            while self.inside.load(Ordering::Acquire) {
                yield_now();
            }
        }
        self.witness.written();
        Guard { lock: self, mutex: Some(mutex) }
    }

    #[inline]
    fn leave(&self) {
        // Release: what was done inside is seen by who has waited for it.
        self.inside.store(false, Ordering::Release);
    }
}

/// Access to the value, until it is dropped.
pub(crate) struct Guard<'a, T> {
    lock: &'a Confined<T>,
    /// None for the owner while the value is its own.
    mutex: Option<MutexGuard<'a, ()>>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: whoever has the guard is alone with the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is mutably borrowed.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.witness.written();
        if self.mutex.is_none() {
            self.lock.leave();
        }
    }
}

impl<T> fmt::Debug for Confined<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confined").field("shared", &self.shared).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{self, AssertUnwindSafe};
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Barrier};
    use std::thread;

    use super::*;

    /// As the one owner there is.
    fn owned<T>(lock: &Confined<T>) -> Guard<'_, T> {
        // SAFETY: each test calls this on one thread.
        unsafe { lock.lock(true) }
    }

    fn foreign<T>(lock: &Confined<T>) -> Guard<'_, T> {
        // SAFETY: nothing is promised by who is not the owner.
        unsafe { lock.lock(false) }
    }

    #[test]
    fn nothing_is_lost_when_another_thread_comes_in_the_middle() {
        const EACH: usize = if cfg!(miri) { 20 } else { 1000 };
        for confined in [barrier::is_available(), false] {
            // Miri is slow.
            for _ in 0..if cfg!(miri) { 2 } else { 200 } {
                let lock = Arc::new(Confined::new(0, confined));
                let (both, over) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
                let other = thread::spawn({
                    let (lock, both, over) = (lock.clone(), both.clone(), over.clone());
                    move || {
                        both.wait();
                        for _ in 0..EACH {
                            *foreign(&lock) += 1;
                        }
                        over.store(true, Ordering::Relaxed);
                    }
                });
                both.wait();
                let mut own = 0;
                while !over.load(Ordering::Relaxed) {
                    *owned(&lock) += 1;
                    own += 1;
                }
                other.join().unwrap();
                assert_eq!(*owned(&lock), own + EACH);
            }
        }
    }

    #[test]
    fn the_owner_cannot_enter_twice() {
        let lock = Confined::new(1, true);
        let guard = owned(&lock);
        panic::catch_unwind(AssertUnwindSafe(|| drop(owned(&lock)))).unwrap_err();
        // SAFETY: one thread.
        panic::catch_unwind(AssertUnwindSafe(|| unsafe { lock.share() })).unwrap_err();
        drop(guard);
        assert_eq!(*owned(&lock), 1);
    }

    #[test]
    fn what_the_owner_shares_is_shared_at_once() {
        let lock = Confined::new(1, true);
        *owned(&lock) += 1;
        // SAFETY: one thread.
        unsafe { lock.share() };
        thread::scope(|scope| scope.spawn(|| *foreign(&lock) += 1).join().unwrap());
        assert_eq!(*owned(&lock), 3);
    }
}
