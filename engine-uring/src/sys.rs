//! The system calls that are not the ring's.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void};

/// The result of a system call as a `Result`.
macro_rules! syscall {
    ($name:ident ( $($arg:expr),* $(,)? )) => {{
        #[allow(clippy::undocumented_unsafe_blocks, reason = "said where the macro is used")]
        let result = unsafe { libc::$name($($arg),*) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }};
}

/// Returns early from a system call that a test wants to fail.
macro_rules! fault {
    ($call:ident) => {
        #[cfg(duopoll_faults)]
        if let Some(errno) = duopoll_core::faults::errno(duopoll_core::faults::Call::$call) {
            return Err(io::Error::from_raw_os_error(errno));
        }
    };
}
pub(crate) use fault;

pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    fault!(EventFd);
    let fd = syscall!(eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
    // SAFETY: eventfd(2) gave a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn eventfd_write(fd: &OwnedFd) -> io::Result<()> {
    fault!(Notify);
    let one: u64 = 1;
    // SAFETY for the call: eight readable bytes.
    syscall!(write(fd.as_raw_fd(), (&raw const one).cast::<c_void>(), size_of::<u64>()))?;
    Ok(())
}

/// Sets the eventfd's counter to zero.
pub(crate) fn eventfd_reset(fd: &OwnedFd) {
    let mut count: u64 = 0;
    // SAFETY for the call: eight writable bytes. EAGAIN: it is zero already.
    let _ = syscall!(read(fd.as_raw_fd(), (&raw mut count).cast::<c_void>(), size_of::<u64>()));
}

pub(crate) fn shutdown(fd: RawFd, how: c_int) -> io::Result<()> {
    fault!(Shutdown);
    // SAFETY for the call: takes no memory.
    syscall!(shutdown(fd, how))?;
    Ok(())
}

/// How a connect(2) that was under way has ended.
pub(crate) fn connect_result(fd: RawFd) -> io::Result<()> {
    fault!(ConnectResult);
    let mut errno: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY for the call: `len` bytes can be written to `errno`.
    syscall!(getsockopt(
        fd,
        libc::SOL_SOCKET,
        libc::SO_ERROR,
        (&raw mut errno).cast::<c_void>(),
        &raw mut len,
    ))?;
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// Ends a connection at once: TCP sends a reset, and whoever waits in the kernel is woken. Unix sockets know no reset,
/// and are shut down.
pub(crate) fn reset(fd: RawFd) {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as _, sa_data: [0; 14] };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY for the call: `len` readable bytes. connect(2): AF_UNSPEC dissolves the association.
    if syscall!(connect(fd, &raw const nowhere, len)).is_err() {
        // ENOTCONN: the peer was faster.
        let _ = shutdown(fd, libc::SHUT_RDWR);
    }
}

/// Two connected Unix stream sockets.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY for the call: two descriptors can be written.
    syscall!(socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()))?;
    // SAFETY: socketpair(2) gave two new descriptors, which nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}
