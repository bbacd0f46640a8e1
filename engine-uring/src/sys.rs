//! The system calls that are not the ring's.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

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
    loop {
        match eventfd_write_once(fd) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn eventfd_write_once(fd: &OwnedFd) -> io::Result<()> {
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

/// Bytes that the socket holds.
pub(crate) fn unread_bytes(fd: RawFd) -> usize {
    let mut bytes: c_int = 0;
    // SAFETY for the call: FIONREAD writes an int.
    let asked = syscall!(ioctl(fd, libc::FIONREAD, &raw mut bytes));
    asked.map_or(0, |_| usize::try_from(bytes).unwrap_or(0))
}

/// What the socket is ready for: `POLLIN`, `POLLOUT`, `POLLRDHUP`, `POLLHUP`, `POLLERR`.
pub(crate) fn ready(fd: RawFd) -> i16 {
    let events = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY for the call: one entry, which can be written to.
    let polled = syscall!(poll(&raw mut entry, 1, 0));
    polled.map_or(0, |_| entry.revents)
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

/// A listening Unix socket at an address that the kernel chooses.
pub(crate) fn unix_listener() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY for the call: takes no memory.
    let fd = syscall!(socket(libc::AF_UNIX, kind, 0))?;
    // SAFETY: socket(2) gave a new descriptor, which nobody else owns.
    let listener = unsafe { OwnedFd::from_raw_fd(fd) };
    let family = libc::AF_UNIX as libc::sa_family_t;
    let len = size_of::<libc::sa_family_t>() as libc::socklen_t;
    // SAFETY for the call: `len` readable bytes. unix(7): so short an address asks for one.
    syscall!(bind(listener.as_raw_fd(), (&raw const family).cast(), len))?;
    // SAFETY for the call: takes no memory.
    syscall!(listen(listener.as_raw_fd(), 2))?;
    Ok(listener)
}

/// A TCP listener on the loopback interface, at a port that the kernel chooses.
#[cfg(feature = "zerocopy")]
pub(crate) fn tcp_listener() -> io::Result<OwnedFd> {
    // SAFETY for the call: takes no memory.
    let fd = syscall!(socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?;
    // SAFETY: socket(2) gave a new descriptor, which nobody else owns.
    let listener = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a sockaddr_in may be all zero.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as libc::sa_family_t;
    address.sin_addr.s_addr = libc::INADDR_LOOPBACK.to_be();
    let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY for the call: `len` readable bytes.
    syscall!(bind(listener.as_raw_fd(), (&raw const address).cast(), len))?;
    // SAFETY for the call: takes no memory.
    syscall!(listen(listener.as_raw_fd(), 1))?;
    Ok(listener)
}

/// A connection to a listener.
pub(crate) fn connect_to(listener: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: a sockaddr_storage may be all zero.
    let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY for the call: `len` writable bytes.
    syscall!(getsockname(listener.as_raw_fd(), (&raw mut address).cast(), &raw mut len))?;
    // SAFETY for the call: takes no memory.
    let family = i32::from(address.ss_family);
    let fd = syscall!(socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?;
    // SAFETY: socket(2) gave a new descriptor, which nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY for the call: `len` readable bytes.
    syscall!(connect(socket.as_raw_fd(), (&raw const address).cast(), len))?;
    Ok(socket)
}

pub(crate) fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY for the call: so many readable bytes.
    syscall!(write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()))?;
    Ok(())
}

/// Private anonymous memory, page by page.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    bytes: usize,
}

impl Mapping {
    /// So many zero bytes.
    pub(crate) fn new(bytes: usize) -> io::Result<Mapping> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: asks for fresh memory, wherever there is room.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Mapping { start, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn as_ptr(&self) -> NonNull<c_void> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what was mapped, and nobody refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
    }
}
