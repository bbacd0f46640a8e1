//! Sends without a copy (`MSG_ZEROCOPY`): turning them on, and the notices that the kernel gives of them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use libc::sock_extended_err;

use crate::sys::{self, Control};

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
pub(crate) fn enable(fd: RawFd) -> io::Result<()> {
    if sys::option(fd, libc::SO_ZEROCOPY)? != 0 {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    sys::set_option(fd, libc::SO_ZEROCOPY, 1)
}

/// Why no socket can send without a copy here, if none can.
pub(crate) fn refusal() -> Option<String> {
    let tried = sys::tcp_socket().and_then(|socket| enable(socket.as_raw_fd()));
    tried.err().map(|error| {
        format!("this kernel refuses to send without a copy: {error} from setsockopt(SO_ZEROCOPY)")
    })
}

/// Takes one notice from the socket's error queue; none if there is none. One that is of something else is `Some(None)`.
pub(crate) fn take_notice(fd: RawFd) -> io::Result<Option<Option<Notice>>> {
    let mut control = Control::default();
    let Some(message) = sys::take_error_notice(fd, &mut control)? else { return Ok(None) };
    // SAFETY: the kernel has filled the control buffer in, which is still there.
    Ok(Some(unsafe { parse(&message) }))
}

/// # Safety
/// The message's control buffer is filled in as its length says.
unsafe fn parse(message: &libc::msghdr) -> Option<Notice> {
    // SAFETY: promised by the caller.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie within the buffer whole.
        let (level, kind, len) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        let of_errors = matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        );
        // SAFETY: computes a length.
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
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
