//! The system calls of this engine, each with the hook by which a test makes it fail.
//!
//! Those of the hot path are instructions where they are called, since `rustix` is inlined: nothing returns but the kernel,
//! which has used up the processor's stack of return addresses. A receive into several vectors goes through the C library,
//! since their memory need not be initialised.

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::slice;

use duopoll_core::fault;
use libc::iovec;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};

/// Returns early from a call on a socket that a test wants to fail.
macro_rules! socket_fault {
    ($call:ident, $fd:expr) => {
        #[cfg(duopoll_faults)]
        if let Some(error) = faults::on_socket(duopoll_core::faults::Call::$call, $fd) {
            return Err(error);
        }
    };
}

pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    fault!(Setup);
    Ok(epoll::create(CreateFlags::CLOEXEC)?)
}

pub(crate) fn epoll_add(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    events: EventFlags,
    data: u64,
) -> io::Result<()> {
    fault!(Register);
    Ok(epoll::add(epoll, fd, EventData::new_u64(data), events)?)
}

pub(crate) fn epoll_modify(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    events: EventFlags,
    data: u64,
) -> io::Result<()> {
    Ok(epoll::modify(epoll, fd, EventData::new_u64(data), events)?)
}

pub(crate) fn epoll_del(epoll: &OwnedFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(epoll::delete(epoll, fd)?)
}

/// Waits for at most so long; for ever without a timeout. Returns how many events are set.
#[inline]
pub(crate) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [Event],
    timeout: Option<&Timespec>,
) -> io::Result<usize> {
    fault!(Wait);
    Ok(epoll::wait(epoll, events, timeout)?)
}

/// Receives into the vectors: `recv` for one, which costs the kernel a little less than `readv`.
///
/// # Safety
/// The vectors describe writable memory that nobody else uses.
#[inline]
pub(crate) unsafe fn receive(fd: BorrowedFd<'_>, vectors: &[iovec]) -> io::Result<usize> {
    socket_fault!(Receive, fd);
    if let [one] = vectors {
        // SAFETY: the vector describes writable memory, as the caller promises.
        let room = unsafe {
            slice::from_raw_parts_mut(one.iov_base.cast::<MaybeUninit<u8>>(), one.iov_len)
        };
        let (_, received) = rustix::net::recv(fd, room, RecvFlags::empty())?;
        Ok(received)
    } else {
        // SAFETY: the vectors describe writable memory, as the caller promises.
        let received =
            unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}

/// Receives from a Unix socket. A receive stops behind a message that carries descriptors, whatever follows it:
/// `stopped_short` says that it may have. The descriptors were not asked for, and the kernel closes them.
///
/// # Safety
/// As for [`receive`].
pub(crate) unsafe fn receive_message(
    fd: BorrowedFd<'_>,
    vectors: &[iovec],
    stopped_short: &mut bool,
) -> io::Result<usize> {
    socket_fault!(Receive, fd);
    let mut message = empty_message();
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len() as _;
    // SAFETY: the vectors describe writable memory, as the caller promises; recvmsg(2) does not write to themselves.
    let received = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    *stopped_short = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(received)
}

pub(crate) fn empty_message() -> libc::msghdr {
    // SAFETY: a msghdr may be all zero.
    unsafe { mem::zeroed() }
}

/// Sends the vectors: `send` for one, `sendmsg` for more. Never raises SIGPIPE, whatever the flags.
///
/// # Safety
/// The vectors describe readable memory.
#[inline]
pub(crate) unsafe fn send(fd: BorrowedFd<'_>, vectors: &[iovec], flags: i32) -> io::Result<usize> {
    socket_fault!(Send, fd);
    let flags = SendFlags::from_bits_retain(flags as u32) | SendFlags::NOSIGNAL;
    if let [one] = vectors {
        // SAFETY: the vector describes readable memory, as the caller promises.
        let bytes = unsafe { slice::from_raw_parts(one.iov_base.cast::<u8>(), one.iov_len) };
        Ok(rustix::net::send(fd, bytes, flags)?)
    } else {
        // SAFETY: an IoSlice is an iovec by its documentation, whose memory is readable, as the caller promises.
        let vectors =
            unsafe { slice::from_raw_parts(vectors.as_ptr().cast::<IoSlice<'_>>(), vectors.len()) };
        Ok(rustix::net::sendmsg(fd, vectors, &mut SendAncillaryBuffer::default(), flags)?)
    }
}

/// Whether this is a Unix socket.
pub(crate) fn is_unix(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::UNIX)
}

/// What a test's faults do to sockets.
#[cfg(duopoll_faults)]
pub(crate) mod faults {
    use std::cell::Cell;

    use duopoll_core::faults::{Call, breaks_socket, errno};
    use rustix::net::Shutdown;

    use super::*;

    thread_local! {
        /// The last call would have blocked because a test wants it to.
        static BLOCKED: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn on_socket(call: Call, fd: BorrowedFd<'_>) -> Option<io::Error> {
        let errno = errno(call)?;
        BLOCKED.set(errno == libc::EAGAIN);
        if breaks_socket(errno) {
            let _ = rustix::net::shutdown(fd, Shutdown::Both);
        }
        Some(io::Error::from_raw_os_error(errno))
    }

    /// If the last call would have blocked because a test wants it to: has the kernel report the socket again,
    /// as it does a socket that no longer blocks.
    pub(crate) fn report_again(epoll: &OwnedFd, fd: BorrowedFd<'_>, events: EventFlags, data: u64) {
        if BLOCKED.take() {
            let _ = epoll_modify(epoll, fd, events, data);
        }
    }
}
