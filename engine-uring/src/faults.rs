//! What a test's faults do to submissions.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;

use duopoll_core::faults::{Call, breaks_socket, errno};
use io_uring::{opcode, squeue};
use rustix::net::Shutdown;

use crate::socket::Op;

/// Operations that shall fail: in their place there is one that does nothing, whose completion is taken for theirs.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The errno, by user data.
    errnos: HashMap<u64, i32>,
}

impl Faults {
    /// What is to be submitted for this entry.
    pub(crate) fn submitted(&mut self, entry: &squeue::Entry) -> squeue::Entry {
        let user_data = entry.get_user_data();
        let call = match Op::parse(user_data) {
            Some((Op::Receive | Op::ReceiveMulti, _)) => Call::Receive,
            Some((Op::Send, _)) => Call::Send,
            Some((Op::PollIn | Op::PollOut | Op::Watch, _)) => Call::Poll,
            Some((Op::Connect, _)) => Call::ConnectPoll,
            Some((Op::Wake, _)) => Call::WakerPoll,
            #[cfg(feature = "zerocopy")]
            Some((Op::SendZeroCopy, _)) => Call::Send,
            Some((Op::Cancel, _)) | None => return entry.clone(),
        };
        match errno(call) {
            Some(errno) => {
                self.errnos.insert(user_data, errno);
                opcode::Nop::new().build().user_data(user_data)
            }
            None => entry.clone(),
        }
    }

    /// What is to be taken for the result of a completion.
    pub(crate) fn completed(
        &mut self,
        user_data: u64,
        result: i32,
        fd: Option<BorrowedFd<'_>>,
    ) -> i32 {
        let Some(errno) = self.errnos.remove(&user_data) else { return result };
        if let Some(fd) = fd.filter(|_| breaks_socket(errno)) {
            let _ = rustix::net::shutdown(fd, Shutdown::Both);
        }
        -errno
    }
}

/// What is to be taken for the result of a receive by a system call.
pub(crate) fn on_receive(fd: BorrowedFd<'_>) -> Option<io::Error> {
    let errno = errno(Call::Receive)?;
    if breaks_socket(errno) {
        let _ = rustix::net::shutdown(fd, Shutdown::Both);
    }
    Some(io::Error::from_raw_os_error(errno))
}
