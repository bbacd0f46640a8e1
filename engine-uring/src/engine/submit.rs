//! What is queued for the kernel: an entry in the submission queue for each operation, or a place in a list until there is
//! room for one.
//!
//! An operation counts as in flight when its entry is queued, and not before. Where there is no room it waits in the list
//! from which it came; vectors that were lent for it are given back.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

#[cfg(duopoll_faults)]
use duopoll_core::faults;
use duopoll_core::syscalls;
use duopoll_core::{Inputs, Kind, Lease, Next, Operators, Outputs, Token};
use io_uring::{opcode, squeue, types::Fd};
use libc::iovec;

use super::{Uring, saturating};
use crate::buffers;
use crate::socket::Op;
#[cfg(feature = "zerocopy")]
use crate::zerocopy::{self, REPORT_USAGE, ZeroCopy};

/// Sends that nobody waits for are not to wait either: they complete when they are submitted, and the wait that submits
/// them leaves their completions out. Of so many bytes together, since their memory is held until the next event.
const QUICK_BYTES_MAX: usize = 64 << 10;

/// Never raise SIGPIPE. And not `MSG_WAITALL`: a send to a slow peer would complete when the last byte is taken, and
/// look idle until then.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;
/// What is received into is lent while something comes, and not to wait: a thousand idle connections would hold a thousand blocks.
const RECEIVE_FLAGS: i32 = libc::MSG_DONTWAIT;

pub(super) const NO_VECTOR: iovec = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The waker's place among the tokens; no slab gives it.
const WAKER: Token = Token::new(u32::MAX, u32::MAX);

impl Uring {
    /// Queues everything that waits for the next submission. False if the operators lent nothing for some of it: then
    /// they may have set a timer, which the timeout of this turn does not know.
    pub(super) fn queue<O: Operators>(&mut self, operators: &mut O) -> bool {
        if !self.waker_armed && self.ring.make_room() {
            let fd = Fd(self.waker.as_fd().as_raw_fd());
            let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true);
            // SAFETY: a poll points to no memory.
            let pushed =
                unsafe { self.ring.push(&poll.build().user_data(Op::Wake.user_data(WAKER))) };
            self.waker_armed = pushed.is_ok();
        }
        while let Some(user_data) = self.to_cancel.pop_front() {
            let entry = opcode::AsyncCancel::new(user_data).build();
            let entry = entry.user_data(Op::Cancel.user_data(WAKER));
            // SAFETY: a cancellation points to no memory.
            if !self.ring.make_room() || unsafe { self.ring.push(&entry) }.is_err() {
                self.to_cancel.push_front(user_data);
                break;
            }
        }
        for _ in 0..self.to_send.len() {
            let Some(token) = self.to_send.pop_front() else { break };
            if let Some(socket) = self.sockets.get_mut(token) {
                socket.send_listed = false;
                match socket.kind {
                    Kind::Datagrams => self.queue_room(token),
                    _ => self.queue_send(token, operators),
                }
            }
        }
        let mut to_receive = mem::take(&mut self.to_receive);
        let (mut queued, mut refused) = (0, false);
        let shared = self.buffers.as_ref().is_some_and(|buffers| !buffers.are_scarce());
        for &token in &to_receive {
            if !self.ring.make_room() {
                break;
            }
            queued += 1;
            let Some(socket) = self.sockets.get_mut(token) else { continue };
            socket.listed = false;
            if socket.inbound.is_some() || socket.stopped || socket.ended || socket.closing {
                continue;
            }
            socket.cancelled = false;
            match socket.kind {
                Kind::Stream if socket.bulk > 0 && socket.readable => self.read_later(token),
                Kind::Stream if socket.bulk > 0 => self.queue_poll(token, Op::PollIn),
                Kind::Stream if shared => match operators.receives(token) {
                    true => self.queue_receive_multi(token),
                    false => socket.stopped = true,
                },
                Kind::Stream if socket.readable => refused |= !self.queue_receive(token, operators),
                // Without a buffer.
                Kind::Stream | Kind::Listener => self.queue_poll(token, Op::PollIn),
                Kind::Connecting => self.queue_poll(token, Op::Connect),
                Kind::Watched | Kind::Datagrams => self.queue_watch(token),
            }
        }
        to_receive.drain(..queued);
        mem::swap(&mut self.to_receive, &mut to_receive);
        self.to_receive.append(&mut to_receive);
        !refused
    }

    /// False if the operators lend nothing, or want nothing any more.
    fn queue_receive<O: Operators>(&mut self, token: Token, operators: &mut O) -> bool {
        let mut vectors = [NO_VECTOR; 2];
        let lent = operators.inputs(token, Lease::InFlight, &mut vectors);
        let Some(socket) = self.sockets.get_mut(token) else { return true };
        let Inputs::Vectors(count) = lent else {
            socket.stopped = true;
            return false;
        };
        #[cfg(duopoll_faults)]
        let count = faults::shorten_inputs(&mut vectors[..count]);
        let fd = socket.fd();
        let lent: usize = vectors[..count].iter().map(|vector| vector.iov_len).sum();
        let entry = if count == 1 {
            let len = u32::try_from(vectors[0].iov_len).unwrap_or(u32::MAX);
            opcode::Recv::new(fd, vectors[0].iov_base.cast(), len).flags(RECEIVE_FLAGS).build()
        } else {
            self.ring.next_vectors()[..2].copy_from_slice(&vectors);
            let header = self.ring.next_header(2);
            opcode::RecvMsg::new(fd, header).flags(RECEIVE_FLAGS as u32).build()
        };
        // SAFETY: the operators lend the vectors until the acknowledgement, which follows the completion.
        if unsafe { self.ring.push(&entry.user_data(Op::Receive.user_data(token))) }.is_err() {
            // SAFETY: the kernel was not given the vectors, and nothing has come.
            let next = unsafe { operators.input_ack(token, Err(io::ErrorKind::WouldBlock.into())) };
            if next == Next::Stop {
                self.stop(token);
                return false;
            }
            self.receive_later(token);
            return true;
        }
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.inbound = Some(Op::Receive);
            socket.lent = saturating(lent);
        }
        true
    }

    fn queue_receive_multi(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let op = Op::ReceiveMulti;
        let entry = opcode::RecvMulti::new(socket.fd(), buffers::GROUP).build();
        // SAFETY: the buffers stay until the operation is over, or are leaked.
        if unsafe { self.ring.push(&entry.user_data(op.user_data(token))) }.is_err() {
            return self.receive_later(token);
        }
        socket.inbound = Some(op);
        socket.fresh = true;
    }

    fn queue_watch(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let room = if socket.kind == Kind::Watched { libc::POLLOUT } else { 0 };
        let events = libc::POLLIN | room | libc::POLLRDHUP | libc::POLLPRI;
        let entry = opcode::PollAdd::new(socket.fd(), events as u32).multi(true).build();
        // SAFETY: a poll points to no memory.
        if unsafe { self.ring.push(&entry.user_data(Op::Watch.user_data(token))) }.is_err() {
            return self.receive_later(token);
        }
        socket.inbound = Some(Op::Watch);
    }

    /// Waits for room in a socket for datagrams, if somebody wants it and that is not under way.
    pub(super) fn queue_room(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if socket.wants_room && socket.outbound.is_none() && !socket.ended {
            self.queue_poll(token, Op::PollOut);
        }
    }

    /// Waits for readiness, where the kernel did not wait by itself: an older one, or a non-blocking listener.
    pub(super) fn queue_poll(&mut self, token: Token, op: Op) {
        let Some(socket) = self.sockets.get_mut(token).filter(|socket| !socket.closing) else {
            return;
        };
        let fd = socket.fd();
        let goes_on = socket.kind == Kind::Datagrams;
        let (events, direction) = match op {
            Op::PollOut => (libc::POLLOUT, &mut socket.outbound),
            Op::Connect => (libc::POLLOUT, &mut socket.inbound),
            _ => (libc::POLLIN | libc::POLLRDHUP, &mut socket.inbound),
        };
        let entry = opcode::PollAdd::new(fd, events as u32).multi(goes_on).build();
        let entry = entry.user_data(op.user_data(token));
        // SAFETY: a poll points to no memory.
        if self.ring.make_room() && unsafe { self.ring.push(&entry) }.is_ok() {
            *direction = Some(op);
        } else {
            // As good: the operation itself is tried again, and finds out whether it would block.
            self.resume(token, op);
        }
    }

    fn resume(&mut self, token: Token, op: Op) {
        match op {
            Op::PollOut => self.send_later(token),
            _ => self.receive_later(token),
        }
    }

    pub(super) fn receive_later(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(token) {
            if !mem::replace(&mut socket.listed, true) {
                self.to_receive.push(token);
            }
        }
    }

    pub(super) fn send_later(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(token) {
            if !mem::replace(&mut socket.send_listed, true) {
                self.to_send.push_back(token);
            }
        }
    }

    /// Queues a send of what the operators have, unless one is under way.
    pub(super) fn queue_send<O: Operators>(&mut self, token: Token, operators: &mut O) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if socket.outbound.is_some() || socket.closing {
            // Somebody waits for it, so the wait must not leave it out.
            self.quick_sends = 0;
            return;
        }
        let (socket_fd, fd) = (socket.fd, socket.fd());
        if !self.ring.make_room() {
            return self.send_later(token);
        }
        let vectors = self.ring.next_vectors();
        let (count, bytes, flags, awaited) = match operators.outputs(token, vectors) {
            Outputs::Vectors { count, bytes, flags, awaited } => (count, bytes, flags, awaited),
            Outputs::Nothing => return,
            Outputs::Finish => {
                self.stats.syscalls += 1;
                // As a system call: IORING_OP_SHUTDOWN would be punted to a worker thread.
                syscalls::finish(socket_fd);
                return;
            }
        };
        #[cfg(duopoll_faults)]
        let (count, bytes) = faults::shorten_outputs(&mut vectors[..count], bytes);
        #[cfg(feature = "zerocopy")]
        if flags & libc::MSG_ZEROCOPY != 0 {
            return self.queue_zero_copy(token, count, bytes, operators);
        }
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let quick = !awaited && !socket.slow && self.quick_bytes + bytes <= QUICK_BYTES_MAX;
        let flags = flags | SEND_FLAGS | if quick { libc::MSG_DONTWAIT } else { 0 };
        let first = vectors[0];
        let entry: squeue::Entry = if count == 1 {
            let len = u32::try_from(bytes).unwrap_or(u32::MAX);
            opcode::Send::new(fd, first.iov_base.cast(), len).flags(flags).build()
        } else {
            let header = self.ring.next_header(count);
            opcode::SendMsg::new(fd, header).flags(flags as u32).build()
        };
        // SAFETY: the operators keep the vectors valid until the acknowledgement, which follows the completion.
        if unsafe { self.ring.push(&entry.user_data(Op::Send.user_data(token))) }.is_err() {
            operators.output_ack(token, Err(io::ErrorKind::WouldBlock.into()));
            return self.send_later(token);
        }
        socket.outbound = Some(Op::Send);
        socket.sending = saturating(bytes);
        if quick {
            self.quick_sends += 1;
            self.quick_bytes += bytes;
        }
    }

    /// The same without a copy, of the vectors that the ring has been given last.
    #[cfg(feature = "zerocopy")]
    fn queue_zero_copy<O: Operators>(
        &mut self,
        token: Token,
        count: usize,
        bytes: usize,
        operators: &mut O,
    ) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let send = self.zero_copies.insert_with(|_| ZeroCopy {
            socket: token,
            number: None,
            in_flight: true,
        });
        let entry = opcode::SendMsgZc::new(socket.fd(), self.ring.next_header(count))
            .flags(SEND_FLAGS as u32)
            .ioprio(REPORT_USAGE)
            .build();
        // SAFETY: the operators keep the vectors valid until the acknowledgement, and the bytes until the notice.
        if unsafe { self.ring.push(&entry.user_data(Op::SendZeroCopy.user_data(send))) }.is_err() {
            self.zero_copies.remove(send);
            operators.zerocopy_ack(token, Err(io::ErrorKind::WouldBlock.into()));
            return self.send_later(token);
        }
        socket.outbound = Some(Op::SendZeroCopy);
        socket.sending = saturating(bytes);
    }

    /// Receives, or accepts, nothing more.
    pub(super) fn stop(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        socket.stopped = true;
        self.cancel_inbound(token);
    }

    /// Ends what goes on by itself.
    pub(super) fn cancel_inbound(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if let Some(op @ Op::ReceiveMulti) = socket.inbound {
            if !mem::replace(&mut socket.cancelled, true) {
                self.to_cancel.push_back(op.user_data(token));
            }
        }
    }

    pub(super) fn cancel(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        for op in [socket.inbound, socket.outbound].into_iter().flatten() {
            let token = match op {
                #[cfg(feature = "zerocopy")]
                Op::SendZeroCopy => zerocopy::in_flight(&self.zero_copies, token),
                _ => Some(token),
            };
            self.to_cancel.extend(token.map(|token| op.user_data(token)));
        }
    }
}
