//! What comes through the error queue of a socket: the notices that the kernel gives of sends without a copy
//! (`MSG_ZEROCOPY`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use duopoll_core::{Operators, Token};

use crate::sys;
#[cfg(feature = "zerocopy")]
use crate::zerocopy::{self, Notice};

/// Takes one message from the error queue of a socket, and tells of the notice in it, if it is one. False if there is none.
pub(crate) fn take<O: Operators>(token: Token, fd: BorrowedFd<'_>, operators: &mut O) -> bool {
    let mut control = Control::default();
    let Ok(Some(message)) = take_message(fd, &mut control) else { return false };
    #[cfg(feature = "zerocopy")]
    // SAFETY: the kernel has filled the control buffer in, and its length.
    if let Some(Notice { first, last, copied }) = unsafe { zerocopy::notice_in(&message) } {
        operators.zerocopy_notice(token, first, last, copied);
    }
    let _ = (token, message, operators);
    true
}

/// Room for the control messages of one notice.
type Control = [u64; 16];

/// One message of the error queue, with its control messages in the buffer.
fn take_message(fd: BorrowedFd<'_>, control: &mut Control) -> io::Result<Option<libc::msghdr>> {
    let mut message = sys::empty_message();
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control) as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the control buffer is as long as the message says, which has no vectors.
    if unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) } >= 0 {
        return Ok(Some(message));
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        error => Err(error),
    }
}
