//! What the engine does without where it must, one test a [`Feature`](crate::features::Feature).

#[cfg(feature = "zerocopy")]
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use io_uring::{cqueue, opcode, types::Fd};
#[cfg(feature = "zerocopy")]
use libc::iovec;

use super::peers;
use super::rig::{READY_COMPLETION_TIMEOUT, Rig, broken, count, pair, refused};
use crate::buffers::{self, Buffers};
use crate::ring::Setup;
use crate::unavailable::Unavailable;
#[cfg(feature = "zerocopy")]
use crate::zerocopy::REPORT_USAGE;

/// A stream that is armed once receives twice, into buffers that it was not given, and learns of the end.
pub(super) fn receives_go_on(setup: Setup, incremental: bool) -> Result<(), Unavailable> {
    let mut rig = Rig::new(setup)?;
    let buffers = Buffers::new(&rig.ring, incremental, duopoll_core::Pool::global().clone());
    let mut buffers = LeakedOnDrop(Some(buffers.map_err(refused("IORING_REGISTER_PBUF_RING"))?));
    let (left, right) = pair()?;
    let receive = opcode::RecvMulti::new(Fd(right.as_raw_fd()), buffers::GROUP).build();
    // SAFETY: the buffers outlive the operation, or are leaked.
    unsafe { rig.push(&receive.user_data(6)) }?;
    rig.enter(0)?;
    let mut numbers = Vec::new();
    for message in [&b"one"[..], b"another"] {
        peers::write(&left, message).map_err(refused("write"))?;
        let completion = rig.completion_of(6)?;
        let (n, flags) = (count(&completion, "IORING_OP_RECV")?, completion.flags());
        if !cqueue::more(flags) {
            return Err(broken("receives once only"));
        }
        let number = cqueue::buffer_select(flags).ok_or_else(|| broken("chooses no buffer"))?;
        let more = cqueue::buffer_more(flags);
        if more != incremental {
            return Err(broken("does not use a buffer up as it should"));
        }
        let all = buffers.0.as_mut().ok_or_else(|| broken("has no buffers"))?;
        // SAFETY: a completion has said so.
        let taken = unsafe { all.take(number, n, more) };
        if taken.ok_or_else(|| broken("names a buffer that it was not given"))?.bytes() != message {
            return Err(broken("brings other bytes than were sent"));
        }
        numbers.push(number);
    }
    if (numbers[0] == numbers[1]) != incremental {
        return Err(broken("does not take the buffers in turn"));
    }
    // The end comes together with bytes. Some kernels wait for it then, for ever; the others have it at hand.
    peers::write(&left, b"the last").map_err(refused("write"))?;
    drop(left);
    let bytes = rig.completion_of(6)?;
    count(&bytes, "IORING_OP_RECV")?;
    if cqueue::more(bytes.flags()) {
        let last = rig.completion_within(READY_COMPLETION_TIMEOUT, 6).map_err(|unavailable| {
            match unavailable {
                Unavailable { errno: None, .. } => broken("misses an end that comes with bytes"),
                refused => refused,
            }
        });
        let last = last?;
        if last.result() != 0 || cqueue::more(last.flags()) {
            return Err(broken("goes on receiving after the end"));
        }
    }
    drop(buffers.0.take());
    Ok(())
}

/// Buffers that the kernel may still write to: leaked, unless they are taken out.
struct LeakedOnDrop(Option<Buffers>);

impl Drop for LeakedOnDrop {
    fn drop(&mut self) {
        mem::forget(self.0.take());
    }
}

impl Rig {
    pub(super) fn waits_without_iowait(&mut self) -> Result<(), Unavailable> {
        if !self.ring.has_no_iowait() {
            return Err(broken("does not know it"));
        }
        self.ring.wait_without_iowait();
        // SAFETY: points to no memory.
        unsafe { self.push(&opcode::Nop::new().build().user_data(7)) }?;
        self.count_of(7, "IORING_OP_NOP").map(drop)
    }

    /// A send without a copy completes twice. Where there is no loopback device, a Unix socket must do: it refuses, and
    /// in the same two steps.
    #[cfg(feature = "zerocopy")]
    pub(super) fn sends_without_copy(&mut self) -> Result<(), Unavailable> {
        static MESSAGE: [u8; 64] = [7; 64];
        let tcp = peers::tcp_listener().and_then(|listener| {
            let socket = peers::connect_to(&listener)?;
            Ok((listener, socket))
        });
        let (expected, (_other, socket)) = match tcp {
            Ok(sockets) => (MESSAGE.len() as i32, sockets),
            Err(_) => (-libc::EOPNOTSUPP, pair()?),
        };
        let whole = iovec { iov_base: MESSAGE.as_ptr().cast_mut().cast(), iov_len: MESSAGE.len() };
        self.ring.next_vectors()[0] = whole;
        let send = opcode::SendMsgZc::new(Fd(socket.as_raw_fd()), self.ring.next_header(1));
        let send = send.flags(libc::MSG_NOSIGNAL as u32).ioprio(REPORT_USAGE).build();
        // SAFETY: the bytes are static.
        unsafe { self.push(&send.user_data(7)) }?;
        let sent = self.completion_of(7)?;
        if sent.result() < 0 && sent.result() != expected {
            let error = io::Error::from_raw_os_error(-sent.result());
            return Err(refused("IORING_OP_SENDMSG_ZC")(error));
        }
        if sent.result() != expected || !cqueue::more(sent.flags()) {
            return Err(broken("does not announce the notification of a send without a copy"));
        }
        let notified = self.completion_of(7)?;
        if !cqueue::notif(notified.flags()) || cqueue::more(notified.flags()) {
            return Err(broken("does not notify of a send without a copy"));
        }
        Ok(())
    }
}
