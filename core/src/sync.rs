//! The primitives that are shared between threads, from `std`, or from `loom` when a model checks them.

#[cfg(not(loom))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard};
    pub(crate) use std::thread::yield_now;
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now;
}

/// A barrier of which the one side is free, since the other has the kernel make it for both: membarrier(2).
#[cfg(not(loom))]
pub(crate) mod barrier {
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{Ordering, compiler_fence};

    use libc::{
        MEMBARRIER_CMD_PRIVATE_EXPEDITED as BARRIER,
        MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED as REGISTER,
    };

    /// Whether the kernel has it. Asks once per process: in microseconds while that has one thread, later in some 10
    /// milliseconds.
    ///
    /// ThreadSanitizer and Miri know nothing of it, so it is not used under them.
    pub(crate) fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        if cfg!(any(duopoll_tsan, miri)) {
            return false;
        }
        *AVAILABLE.get_or_init(|| membarrier(REGISTER).and_then(|()| membarrier(BARRIER)).is_ok())
    }

    #[inline]
    pub(crate) fn light() {
        compiler_fence(Ordering::SeqCst);
    }

    /// # Panics
    /// If the kernel refuses what it has done before: a filter of system calls was installed that has no room for it.
    pub(crate) fn heavy() {
        if let Err(error) = membarrier(BARRIER) {
            panic!("membarrier(2) worked when the pollers started, and is refused now: {error}");
        }
    }

    fn membarrier(command: libc::c_int) -> io::Result<()> {
        // SAFETY: takes no memory.
        match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// In a model both sides make the barrier themselves.
#[cfg(loom)]
pub(crate) mod barrier {
    use super::{Ordering, fence};

    pub(crate) fn is_available() -> bool {
        true
    }

    pub(crate) fn light() {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn heavy() {
        fence(Ordering::SeqCst);
    }
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

/// Locks a mutex whose critical sections never leave it half-changed, so poisoning carries no news.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}
