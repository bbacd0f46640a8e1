//! The descriptor of a connection, and who holds on to it.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::syscalls;

/// The descriptor of a connection. It is closed when the poller and both halves have let go, so its number is never
/// used again while one of them could mean this connection by it. Other handles do not keep it open.
pub(super) struct Socket {
    /// -1 under a simulated engine.
    fd: RawFd,
    holders: AtomicU8,
    /// Somebody else has had it, and may have set what he liked.
    exposed: AtomicBool,
}

/// The poller, and both halves.
const HOLDERS: u8 = 3;

impl Socket {
    pub(super) fn new(socket: Option<OwnedFd>) -> Socket {
        let fd = socket.map_or(-1, OwnedFd::into_raw_fd);
        Socket { fd, holders: AtomicU8::new(HOLDERS), exposed: AtomicBool::new(false) }
    }

    /// # Safety
    /// Called once by each holder, and by nobody else.
    pub(super) unsafe fn let_go(&self) {
        // AcqRel: whatever the others have done with it comes before it is closed.
        if self.holders.fetch_sub(1, Ordering::AcqRel) == 1 && self.fd >= 0 {
            // SAFETY: it was taken over when this was made, and nobody uses it any more.
            let socket = unsafe { OwnedFd::from_raw_fd(self.fd) };
            if self.exposed.load(Ordering::Relaxed) {
                syscalls::close_at_once(socket.as_fd());
            }
        }
    }

    /// Somebody else gets it to see. Relaxed: whoever lets go last comes behind all who had it.
    pub(super) fn expose(&self) {
        self.exposed.store(true, Ordering::Relaxed);
    }

    /// # Safety
    /// Called by a holder that has not let go, and does not for as long as the borrow lasts.
    pub(super) unsafe fn borrow(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: open, as promised by the caller.
        (self.fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(self.fd) })
    }
}
