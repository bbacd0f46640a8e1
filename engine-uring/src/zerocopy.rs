//! Sends without a copy (`IORING_OP_SENDMSG_ZC`).
//!
//! Such a send completes twice: once with its result, when the next one may be submitted, and once with a notification,
//! when the kernel reads no more from its memory. Notifications come in any order, long after the result, and after the
//! end of the connection too; so each send has a token of its own. A send that fails is followed by a notification, too.

use duopoll_core::{Operators, Token};
use io_uring::{cqueue, opcode, types::Fd};

use crate::engine::{SEND_FLAGS, Uring};
use crate::features::Feature;
use crate::probe;
use crate::socket::Op;

/// `IORING_SEND_ZC_REPORT_USAGE`: the notification says whether the kernel has copied the bytes all the same.
pub(crate) const REPORT_USAGE: u16 = 1 << 3;
/// `IORING_NOTIF_USAGE_ZC_COPIED`: it has.
pub(crate) const COPIED: u32 = 1 << 31;

/// A send without a copy that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ZeroCopy {
    /// The socket that it is of.
    pub(crate) socket: Token,
    /// Its number among those of the socket, once the kernel has taken bytes.
    number: Option<u32>,
    /// Its result has not come yet.
    in_flight: bool,
}

impl Uring {
    /// Queues a send of the vectors that the ring has been given last.
    pub(crate) fn queue_zero_copy(&mut self, token: Token, count: usize, bytes: usize) {
        let Some(socket) = self.sockets.get(token) else { return };
        let send = self.zero_copies.insert_with(|_| ZeroCopy {
            socket: token,
            number: None,
            in_flight: true,
        });
        socket.outbound = Some(Op::SendZeroCopy);
        socket.sending = u32::try_from(bytes).unwrap_or(u32::MAX);
        let entry = opcode::SendMsgZc::new(Fd(socket.fd), self.ring.next_header(count))
            .flags(SEND_FLAGS as u32)
            .ioprio(REPORT_USAGE)
            .build();
        // SAFETY: the operators keep the vectors valid until the acknowledgement, and the bytes until the notice.
        unsafe { self.ring.push(&entry.user_data(Op::SendZeroCopy.user_data(send))) };
    }

    /// A completion of a send: its result, or its notification.
    pub(crate) fn sent_zero_copy<O: Operators>(
        &mut self,
        send: Token,
        result: i32,
        flags: u32,
        operators: &mut O,
    ) {
        let Some(&ZeroCopy { socket: token, number, .. }) = self.zero_copies.get(send) else {
            self.stats.stale_events += 1;
            return;
        };
        if cqueue::notif(flags) {
            self.zero_copies.remove(send);
            if let Some(number) = number {
                operators.zerocopy_notice(token, number, number, result as u32 & COPIED != 0);
            }
            return;
        }
        let mut taken = None;
        if let Some(socket) = self.sockets.get(token) {
            socket.outbound = None;
            if result > 0 {
                taken = Some(socket.zero_copies);
                socket.zero_copies = socket.zero_copies.wrapping_add(1);
            }
        }
        let notified = !cqueue::more(flags);
        match self.zero_copies.get_mut(send) {
            _ if notified => drop(self.zero_copies.remove(send)),
            Some(send) => (send.number, send.in_flight) = (taken, false),
            None => {}
        }
        self.sent(token, result, O::zerocopy_ack, operators);
        if let (Some(number), true) = (taken, notified) {
            operators.zerocopy_notice(token, number, number, true);
        }
        self.release_if_idle(token, operators);
    }

    /// The send of a socket whose result has not come yet. Looks at all of them: for what is rare.
    pub(crate) fn zero_copy_in_flight(&self, socket: Token) -> Option<Token> {
        self.zero_copies.tokens().find(|send| {
            let send = self.zero_copies.get(*send);
            send.is_some_and(|send| send.in_flight && send.socket == socket)
        })
    }

    /// Why nothing can be sent without a copy, if nothing can.
    pub(crate) fn zerocopy_refusal(&self) -> Option<String> {
        if self.features.contains(Feature::ZeroCopySend) {
            return None;
        }
        let report = probe::probe(self.allowed);
        let seen = report.features.into_iter().find(|seen| seen.feature == Feature::ZeroCopySend);
        let reason = seen.map_or_else(|| "not tested".into(), |seen| seen.reason);
        Some(format!("io_uring cannot send without a copy here: {reason}"))
    }
}
