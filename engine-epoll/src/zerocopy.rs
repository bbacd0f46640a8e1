//! Sends without a copy (`MSG_ZEROCOPY`): turning them on, and what the notices of them say.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{c_int, sock_extended_err};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `SO_EE_ORIGIN_ZEROCOPY` of linux/errqueue.h.
const ORIGIN_ZEROCOPY: u8 = 5;
/// `SO_EE_CODE_ZEROCOPY_COPIED` of linux/errqueue.h.
const CODE_COPIED: u8 = 1;

/// The kernel reads no more from the memory of some sends of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// From this one, counted from 0 and wrapping among the sends of the socket that were to go without a copy.
    pub(crate) first: u32,
    /// To this one.
    pub(crate) last: u32,
    /// It has copied them all the same.
    pub(crate) copied: bool,
}

/// Lets the socket send without a copy.
///
/// # Errors
/// Those of setsockopt(2), such as `ENOTSUPP` on a Unix socket; `EOPNOTSUPP` if somebody has done so before: then the
/// number of its first notice is not known.
pub(crate) fn enable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let (fd, level, name) = (fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    let (mut enabled, on): (c_int, c_int) = (0, 1);
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `len` bytes of `enabled` can be written.
    let asked =
        unsafe { libc::getsockopt(fd, level, name, (&raw mut enabled).cast(), &raw mut len) };
    if asked == -1 {
        return Err(io::Error::last_os_error());
    }
    if enabled != 0 {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    // SAFETY: `len` bytes of `on` can be read.
    if unsafe { libc::setsockopt(fd, level, name, (&raw const on).cast(), len) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Why no socket can send without a copy here, if none can.
pub(crate) fn refusal() -> Option<String> {
    let tcp = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let tried = tcp.map_err(io::Error::from).and_then(|socket| enable(socket.as_fd()));
    tried.err().map(|error| {
        format!("this kernel refuses to send without a copy: {error} from setsockopt(SO_ZEROCOPY)")
    })
}

/// # Safety
/// The message's control buffer is filled in as its length says.
pub(crate) unsafe fn notice_in(message: &libc::msghdr) -> Option<Notice> {
    // SAFETY: the control buffer is filled in as its length says, as the caller promises.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie within the buffer whole.
        let (level, kind, len) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        let of_errors = matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        );
        // SAFETY: CMSG_LEN reads nothing: it computes a length.
        let whole = unsafe { libc::CMSG_LEN(size_of::<sock_extended_err>() as u32) } as usize;
        if of_errors && len >= whole {
            // SAFETY: the data of this kind of message begins with this, and is there, as its length says.
            let error =
                unsafe { libc::CMSG_DATA(header).cast::<sock_extended_err>().read_unaligned() };
            if error.ee_errno == 0 && error.ee_origin == ORIGIN_ZEROCOPY {
                return Some(Notice {
                    first: error.ee_info,
                    last: error.ee_data,
                    copied: error.ee_code & CODE_COPIED != 0,
                });
            }
        }
        // SAFETY: the header is one of the control buffer, which is filled in as its length says.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
