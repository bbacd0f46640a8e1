//! The descriptor of a connection, and who holds on to it.

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

/// The descriptor of a connection. It is closed when the poller and both halves have let go, so its number is never
/// used again while one of them could mean this connection by it. Other handles do not keep it open.
pub(super) struct Socket {
    /// -1 under a simulated engine.
    fd: RawFd,
    holders: AtomicU8,
}

/// The poller, and both halves.
const HOLDERS: u8 = 3;

impl Socket {
    pub(super) fn new(socket: Option<OwnedFd>) -> Socket {
        let fd = socket.map_or(-1, OwnedFd::into_raw_fd);
        Socket { fd, holders: AtomicU8::new(HOLDERS) }
    }

    /// # Safety
    /// Called once by each holder, and by nobody else.
    pub(super) unsafe fn let_go(&self) {
        // AcqRel: whatever the others have done with it comes before it is closed.
        if self.holders.fetch_sub(1, Ordering::AcqRel) == 1 && self.fd >= 0 {
            // SAFETY: it was taken over when this was made, and nobody uses it any more.
            drop(unsafe { OwnedFd::from_raw_fd(self.fd) });
        }
    }

    /// # Safety
    /// Called by a holder that has not let go, and does not for as long as the borrow lasts.
    pub(super) unsafe fn borrow(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: open, as promised by the caller.
        (self.fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(self.fd) })
    }
}
