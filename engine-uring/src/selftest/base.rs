//! What the engine cannot do without.

use std::io;
use std::iter;
use std::os::fd::{AsFd, AsRawFd};

use duopoll_core::syscalls::{self, EventFd};
use io_uring::{cqueue, opcode, types::Fd};
use libc::iovec;

use super::peers;
use super::rig::{Rig, broken, count, pair, refused};
use crate::unavailable::Unavailable;

impl Rig {
    /// Vectors go out and come in, and a receive on a non-blocking socket waits.
    pub(super) fn message_arrives(&mut self) -> Result<(), Unavailable> {
        const MESSAGE: &[u8] = b"self-test";
        let (left, right) = pair()?;
        let (front, back) = self.buffer[..MESSAGE.len()].split_at_mut(4);
        let vectors = self.ring.next_vectors();
        vectors[0] = iovec { iov_base: front.as_mut_ptr().cast(), iov_len: front.len() };
        vectors[1] = iovec { iov_base: back.as_mut_ptr().cast(), iov_len: back.len() };
        let header = self.ring.next_header(2);
        let receive = opcode::RecvMsg::new(Fd(right.as_raw_fd()), header).build().user_data(1);
        // SAFETY: the buffer outlives the completion; if that does not come, `Rig::drop` gives it away.
        unsafe { self.push(&receive) }?;
        self.lent = true;
        self.enter(0)?;

        let (head, tail) = MESSAGE.split_at(2);
        let vectors = self.ring.next_vectors();
        vectors[0] = iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        vectors[1] = iovec { iov_base: tail.as_ptr().cast_mut().cast(), iov_len: tail.len() };
        let header = self.ring.next_header(2);
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let send = opcode::SendMsg::new(Fd(left.as_raw_fd()), header).flags(flags).build();
        // SAFETY: the bytes are static.
        unsafe { self.push(&send.user_data(2)) }?;

        // Either may be refused, and the other one then waits for ever.
        let sent = self.count_of(2, "IORING_OP_SENDMSG")?;
        let arrived = self.count_of(1, "IORING_OP_RECVMSG")?;
        self.lent = false;
        if (sent, arrived) != (MESSAGE.len(), MESSAGE.len()) || self.buffer[..arrived] != *MESSAGE {
            return Err(broken("does not carry a message"));
        }
        Ok(())
    }

    /// What is sent and received most.
    pub(super) fn single_vector_arrives(&mut self) -> Result<(), Unavailable> {
        const BYTE: &[u8] = b"x";
        let (left, right) = pair()?;
        let send = opcode::Send::new(Fd(left.as_raw_fd()), BYTE.as_ptr(), 1);
        // SAFETY: the byte is static.
        unsafe { self.push(&send.flags(libc::MSG_NOSIGNAL).build().user_data(8)) }?;
        let sent = self.count_of(8, "IORING_OP_SEND")?;
        self.receive(&right, 9)?;
        let arrived = self.count_of(9, "IORING_OP_RECV")?;
        self.lent = false;
        if (sent, arrived) != (1, 1) || self.buffer[..1] != *BYTE {
            return Err(broken("does not carry a byte"));
        }
        Ok(())
    }

    /// What waiting relies on: a send that is not to wait completes when it is submitted, whatever comes of it.
    pub(super) fn full_socket_refuses(&mut self) -> Result<(), Unavailable> {
        static BYTES: [u8; 16 << 10] = [0; 16 << 10];
        let (left, _right) = pair()?;
        let filled = iter::repeat_with(|| peers::write(&left, &BYTES)).find_map(Result::err);
        if let Some(error) = filled.filter(|error| error.kind() != io::ErrorKind::WouldBlock) {
            return Err(refused("write")(error));
        }
        let send = opcode::Send::new(Fd(left.as_raw_fd()), BYTES.as_ptr(), BYTES.len() as u32);
        let send = send.flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).build();
        // SAFETY: the bytes are static.
        unsafe { self.push(&send.user_data(13)) }?;
        match -self.result_of(13)? {
            libc::EAGAIN => Ok(()),
            _ => Err(broken("has a send wait that is not to")),
        }
    }

    /// What closing relies on.
    pub(super) fn shutdown_ends_a_receive(&mut self) -> Result<(), Unavailable> {
        let (left, _right) = pair()?;
        self.receive(&left, 3)?;
        self.enter(0)?;
        syscalls::shut_down(left.as_fd());
        let result = self.result_of(3)?;
        self.lent = false;
        match result {
            0 => Ok(()),
            _ => Err(broken("does not end a receive at a shutdown")),
        }
    }

    /// What leaving a socket to somebody else relies on.
    pub(super) fn cancellation_ends_a_receive(&mut self) -> Result<(), Unavailable> {
        let (left, _right) = pair()?;
        self.receive(&left, 10)?;
        let cancel = opcode::AsyncCancel::new(10).build().user_data(11);
        // SAFETY: points to no memory.
        unsafe { self.push(&cancel) }?;
        self.count_of(11, "IORING_OP_ASYNC_CANCEL")?;
        let result = self.result_of(10)?;
        self.lent = false;
        match -result {
            libc::ECANCELED => Ok(()),
            _ => Err(broken("does not end a receive that is cancelled")),
        }
    }

    /// What waking relies on.
    pub(super) fn poll_stays_armed(&mut self) -> Result<(), Unavailable> {
        let event = EventFd::new().map_err(|error| Unavailable::step("eventfd", &error))?;
        let poll = opcode::PollAdd::new(Fd(event.as_fd().as_raw_fd()), libc::POLLIN as u32);
        // SAFETY: points to no memory.
        unsafe { self.push(&poll.multi(true).build().user_data(4)) }?;
        for _ in 0..2 {
            event.increment().map_err(|error| Unavailable::step("write", &error))?;
            let completion = self.completion_of(4)?;
            count(&completion, "IORING_OP_POLL_ADD")?;
            if !cqueue::more(completion.flags()) {
                return Err(broken("has no multishot poll"));
            }
        }
        Ok(())
    }
}
