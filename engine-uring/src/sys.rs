//! The system calls that are neither the ring's nor both engines'.

use std::ffi::c_void;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use libc::iovec;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Private anonymous memory, page by page.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    bytes: usize,
}

impl Mapping {
    /// So many zero bytes.
    pub(crate) fn new(bytes: usize) -> io::Result<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without an address the memory is fresh: nobody has it yet.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE)? };
        // The kernel maps nothing at address 0.
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, bytes })
    }

    pub(crate) fn as_ptr(&self) -> NonNull<c_void> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new`, and nobody refers to it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "mapped, and aligned to pages");
    }
}

/// Receives what is there: by `recv` for one vector, by `recvmsg` for more.
///
/// # Safety
/// The vectors describe writable memory that nobody else uses.
pub(crate) unsafe fn receive(fd: BorrowedFd<'_>, vectors: &[iovec]) -> io::Result<usize> {
    #[cfg(duopoll_faults)]
    if let Some(error) = crate::faults::on_receive(fd) {
        return Err(error);
    }
    let fd = fd.as_raw_fd();
    let received = if let [one] = vectors {
        // SAFETY: the vector describes writable memory, as the caller promises.
        unsafe { libc::recv(fd, one.iov_base, one.iov_len, libc::MSG_DONTWAIT) }
    } else {
        // SAFETY: a msghdr may be all zero.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = vectors.as_ptr().cast_mut();
        message.msg_iovlen = vectors.len() as _;
        // SAFETY: the vectors describe writable memory, as the caller promises; recvmsg(2) does not write to themselves.
        unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) }
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}
