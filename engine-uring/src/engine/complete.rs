//! What has completed, and what follows from it.

use std::io;
use std::mem;
use std::time::Duration;

use duopoll_core::syscalls::{self, ACCEPTS_PER_TURN, HAS_ENDED};
use duopoll_core::{Kind, Next, Operators, Pending, Ready, Token};
use io_uring::cqueue;

use super::{COMPLETIONS_PER_TURN, Uring, saturating};
use crate::buffers::Taken;
use crate::socket::Op;
#[cfg(feature = "zerocopy")]
use crate::zerocopy::{COPIED, ZeroCopy};

/// Bytes up to which a message in a shared buffer is copied out of it, so that it does not keep the whole.
const COPIED_BYTES_MAX: usize = 2 << 10;

impl Uring {
    pub(super) fn handle_completions<O: Operators>(&mut self, operators: &mut O) {
        self.unhandled.clear();
        (self.turn_bytes, self.run) = (0, (None, 0));
        let mut left = COMPLETIONS_PER_TURN;
        while left > 0 {
            if self.completions.is_empty() {
                self.ring.completions(&mut self.completions, left);
            }
            let Some(completion) = self.completions.pop_front() else { break };
            left -= 1;
            self.handle(&completion, operators);
        }
        self.turn_told = left < COMPLETIONS_PER_TURN;
        self.turn_left_more = !self.completions.is_empty() || self.ring.has_completions();
    }

    /// What completions that were not handled yet say of a stream.
    pub(super) fn unhandled(&mut self, token: Token) -> Pending {
        self.ring.completions(&mut self.completions, usize::MAX);
        while self.ring.overflows() {
            // The kernel keeps some until it is entered.
            let taken = self.completions.len();
            if self.ring.enter(0, Some(Duration::ZERO)).is_err() {
                break;
            }
            self.ring.completions(&mut self.completions, usize::MAX);
            if self.completions.len() == taken {
                break;
            }
        }
        self.turn_left_more |= !self.completions.is_empty();
        self.unhandled.of(token, &self.completions)
    }

    fn handle<O: Operators>(&mut self, completion: &cqueue::Entry, operators: &mut O) {
        let Some((op, token)) = Op::parse(completion.user_data()) else {
            self.stats.stale_events += 1;
            return;
        };
        let result = completion.result();
        #[cfg(duopoll_faults)]
        let result = {
            #[cfg(feature = "zerocopy")]
            let token = match (op, self.zero_copies.get(token)) {
                (Op::SendZeroCopy, Some(send)) => send.socket,
                _ => token,
            };
            let fd = self.sockets.get_mut(token).map(|socket| socket.fd);
            self.ring.faults.completed(completion.user_data(), result, fd)
        };
        match op {
            Op::Wake => return self.woken(cqueue::more(completion.flags())),
            Op::Cancel => return,
            #[cfg(feature = "zerocopy")]
            Op::SendZeroCopy => {
                return self.sent_zero_copy(token, result, completion.flags(), operators);
            }
            _ => {}
        }
        let more = cqueue::more(completion.flags());
        let Some(socket) = self.sockets.get_mut(token) else {
            // A slot is kept until its last completion, so this is a completion that we never asked for.
            self.stats.stale_events += 1;
            return;
        };
        match op {
            _ if more => {}
            Op::Send | Op::PollOut => socket.outbound = None,
            _ => socket.inbound = None,
        }
        match op {
            Op::Receive => self.received(token, to_result(result), operators),
            Op::ReceiveMulti => self.received_multi(token, result, completion.flags(), operators),
            Op::Send => self.sent(token, result, O::output_ack, operators),
            Op::Connect => self.connected(token, result, operators),
            Op::Watch => {
                self.watched(token, result, operators);
            }
            // Whatever the poll found, the operation itself reports it better.
            Op::PollIn if socket.kind == Kind::Listener => self.accept(token, operators),
            Op::PollIn => {
                socket.readable = true;
                match socket.bulk {
                    0 => self.receive_later(token),
                    _ => self.read_later(token),
                }
            }
            Op::PollOut if socket.kind == Kind::Datagrams => {
                self.told_of_room(token, result, more, operators);
            }
            Op::PollOut => self.send_later(token),
            #[cfg(feature = "zerocopy")]
            Op::SendZeroCopy => {}
            Op::Wake | Op::Cancel => {}
        }
        self.release_if_idle(token, operators);
    }

    /// What came of a receive into the operators' vectors.
    pub(super) fn received<O: Operators>(
        &mut self,
        token: Token,
        result: io::Result<usize>,
        operators: &mut O,
    ) {
        self.stats.receives += 1;
        let received = *result.as_ref().unwrap_or(&0);
        self.stats.received_bytes += received as u64;
        let outcome = match &result {
            Ok(n) => Outcome::of_bytes(*n),
            Err(error) => Outcome::of_error(error),
        };
        let result = match (outcome, result) {
            (Outcome::Retry | Outcome::WouldBlock, Err(_)) => Err(io::ErrorKind::WouldBlock.into()),
            (_, result) => result,
        };
        // SAFETY: the kernel wrote so many bytes, or none.
        let next = unsafe { operators.input_ack(token, result) };
        let Some(socket) = self.sockets.get_mut(token) else { return };
        // What did not fill its vectors has emptied the socket.
        let emptied = saturating(received) < socket.lent;
        socket.readable = outcome == Outcome::Retry && !emptied;
        match outcome {
            Outcome::Done => socket.ended = true,
            _ if next == Next::Stop => socket.stopped = true,
            _ => self.receive_later(token),
        }
        self.weigh(token, received, emptied);
    }

    /// What came of a receive that goes on, or has just ended for whatever reason.
    fn received_multi<O: Operators>(
        &mut self,
        token: Token,
        result: i32,
        flags: u32,
        operators: &mut O,
    ) {
        self.stats.receives += 1;
        let result = to_result(result);
        let is_bulk = self.weigh(token, *result.as_ref().unwrap_or(&0), true);
        let next = if let Some(mut taken) = self.take_received(&result, flags) {
            let copied = match taken.bytes() {
                few if few.len() <= COPIED_BYTES_MAX => operators.copy_in(token, few),
                _ => None,
            };
            copied.unwrap_or_else(|| operators.donate(token, taken.into_slice()))
        } else {
            self.ended_receive(token, result, operators)
        };
        // Where it is polled from now on, the poll sees an end.
        if cqueue::more(flags) && (is_bulk || self.may_miss_the_end(token)) {
            self.cancel_inbound(token);
        }
        #[cfg(duopoll_faults)]
        if cqueue::more(flags) && duopoll_core::faults::ends_early() {
            self.to_cancel.push_back(Op::ReceiveMulti.user_data(token));
        }
        if next == Next::Stop {
            self.stop(token);
        } else if !cqueue::more(flags) {
            // To be armed again; ended ones are passed over.
            self.receive_later(token);
        }
    }

    /// The bytes of a completion, if it has some.
    fn take_received(&mut self, result: &io::Result<usize>, flags: u32) -> Option<Taken<'_>> {
        let number = cqueue::buffer_select(flags)?;
        let n = *result.as_ref().unwrap_or(&0);
        self.stats.received_bytes += n as u64;
        // SAFETY: a completion says that the kernel has written so many bytes into this buffer.
        let taken = unsafe { self.buffers.as_mut()?.take(number, n, cqueue::buffer_more(flags))? };
        (n > 0).then_some(taken)
    }

    /// A receive has ended without bytes.
    fn ended_receive<O: Operators>(
        &mut self,
        token: Token,
        result: io::Result<usize>,
        operators: &mut O,
    ) -> Next {
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.stats.buffer_shortages += 1;
                if let Some(buffers) = &mut self.buffers {
                    buffers.ran_out();
                }
                if let Some(socket) = self.sockets.get_mut(token) {
                    if socket.fresh && !mem::replace(&mut socket.listed, true) {
                        self.hungry.push(token);
                    }
                }
                return Next::More;
            }
            Err(error) if Outcome::of_error(error) != Outcome::Done => return Next::More,
            _ => {}
        }
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.ended = true;
        }
        let result = match result {
            // Bytes that are nowhere: better no connection than one with a hole in it.
            Ok(1..) => Err(io::Error::from_raw_os_error(libc::EIO)),
            result => result,
        };
        // SAFETY: nothing was lent, and nothing has come.
        unsafe { operators.input_ack(token, result) }
    }

    /// If bytes and the end come while a receive is being armed, the kernel delivers the bytes, and then waits for an end
    /// that has been already: on Linux 6.18 if it is a reset, or any end of a Unix socket, and on kernels without
    /// the fix of <https://github.com/axboe/liburing/issues/1549> not only then. So the socket is looked at
    /// when a receive first brings something; one that is armed when the end has come finds it.
    fn may_miss_the_end(&mut self, token: Token) -> bool {
        let Some(socket) = self.sockets.get_mut(token) else { return false };
        if !mem::take(&mut socket.fresh) {
            return false;
        }
        let fd = socket.fd;
        self.stats.syscalls += 1;
        syscalls::ready(fd).intersects(HAS_ENDED)
    }

    fn sent<O: Operators>(
        &mut self,
        token: Token,
        result: i32,
        acknowledge: impl FnOnce(&mut O, Token, io::Result<usize>) -> Next,
        operators: &mut O,
    ) {
        self.stats.sends += 1;
        let result = to_result(result);
        let outcome = match &result {
            Ok(n) => {
                self.stats.sent_bytes += *n as u64;
                Outcome::Retry
            }
            Err(error) => Outcome::of_error(error),
        };
        let result = match (outcome, result) {
            (Outcome::Retry | Outcome::WouldBlock, Err(_)) => {
                self.stats.short_sends += 1;
                Err(io::ErrorKind::WouldBlock.into())
            }
            (_, result) => result,
        };
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.slow = result.as_ref().map_or(true, |n| saturating(*n) < socket.sending);
            self.stats.short_sends += u64::from(socket.slow && result.is_ok());
        }
        let next = acknowledge(operators, token, result);
        match outcome {
            Outcome::WouldBlock => self.queue_poll(token, Op::PollOut),
            _ if next != Next::Stop => self.queue_send(token, operators),
            _ => {}
        }
    }

    /// Whatever the poll found, the socket itself says how the connect has ended. If there was no poll, the connect may
    /// still be under way.
    fn connected<O: Operators>(&mut self, token: Token, polled: i32, operators: &mut O) {
        let polled = to_result(polled);
        if polled.as_ref().is_err_and(|error| Outcome::of_error(error) != Outcome::Done) {
            return self.receive_later(token);
        }
        let Some(socket) = self.sockets.get_mut(token).filter(|socket| !socket.closing) else {
            return;
        };
        self.stats.syscalls += 1;
        let result = polled.and_then(|_| syscalls::connect_result(socket.fd));
        if result.is_ok() {
            socket.kind = Kind::Stream;
            self.receive_later(token);
        } else {
            socket.ended = true;
        }
        operators.connected(token, result);
    }

    /// Accepts who waits, and waits for the next. Not by operations that accept: of those that wait at a socket the kernel
    /// wakes one, in whatever process, and if that one is cancelled by then, nobody is told.
    fn accept<O: Operators>(&mut self, token: Token, operators: &mut O) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(socket) = self.sockets.get_mut(token) else { return };
            if socket.stopped || socket.closing {
                return;
            }
            self.stats.syscalls += 1;
            let result = syscalls::accept(socket.fd);
            if let Err(error) = &result {
                if error.kind() == io::ErrorKind::WouldBlock {
                    break;
                }
                socket.ended = syscalls::is_no_listener(error);
            }
            self.stats.accepts += u64::from(result.is_ok());
            if operators.accepted(token, result) == Next::Stop {
                return self.stop(token);
            }
        }
        self.receive_later(token);
    }

    fn watched<O: Operators>(&mut self, token: Token, result: i32, operators: &mut O) -> Next {
        let Some(socket) = self.sockets.get_mut(token).filter(|socket| !socket.closing) else {
            return Next::Stop;
        };
        let any = |events: libc::c_short| result & i32::from(events) != 0;
        let broken = result < 0 || any(libc::POLLERR | libc::POLLHUP);
        // Asking again would spin; whoever uses it finds out what it is.
        socket.ended |= matches!(-result, libc::EBADF | libc::EINVAL) || any(libc::POLLNVAL);
        let readable = broken || any(libc::POLLIN | libc::POLLRDHUP | libc::POLLPRI);
        let ready = Ready { readable, writable: broken || any(libc::POLLOUT) };
        let next = operators.ready(token, ready);
        // Unless it is still armed.
        self.receive_later(token);
        next
    }

    /// What a poll for room in a socket for datagrams has found. Cancelled, it has found nothing.
    fn told_of_room<O: Operators>(
        &mut self,
        token: Token,
        result: i32,
        more: bool,
        operators: &mut O,
    ) {
        if result != -libc::ECANCELED && self.watched(token, result, operators) == Next::Stop {
            let Some(socket) = self.sockets.get_mut(token) else { return };
            if mem::take(&mut socket.wants_room) && more {
                self.to_cancel.push_back(Op::PollOut.user_data(token));
            }
        }
        // It may be wanted again since it was cancelled.
        self.queue_room(token);
    }

    fn woken(&mut self, armed: bool) {
        self.stats.wakeups += 1;
        self.waker_armed = armed;
        if !armed {
            // A poll looks at the counter when it is armed: unless that is zero, it would fire at once, for ever.
            self.stats.syscalls += 1;
            self.waker.reset();
        }
    }

    /// A completion of a send without a copy: its result, or its notification.
    #[cfg(feature = "zerocopy")]
    fn sent_zero_copy<O: Operators>(
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
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.outbound = None;
            if result > 0 {
                taken = Some(socket.zero_copies_taken);
                socket.zero_copies_taken = socket.zero_copies_taken.wrapping_add(1);
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

    pub(super) fn release_if_idle<O: Operators>(&mut self, token: Token, operators: &mut O) {
        if self.sockets.get_mut(token).is_some_and(|socket| socket.closing && socket.is_idle()) {
            self.sockets.remove(token);
            // SAFETY: nothing of it is in flight, and its completions have all been handled.
            unsafe { operators.released(token) };
        }
    }
}

/// What a result means for the operation that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It did something, and may be asked again; or it was interrupted.
    Retry,
    /// Wait for readiness first.
    WouldBlock,
    /// Nothing more will come.
    Done,
}

impl Outcome {
    fn of_bytes(n: usize) -> Outcome {
        if n == 0 { Outcome::Done } else { Outcome::Retry }
    }

    fn of_error(error: &io::Error) -> Outcome {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Outcome::WouldBlock,
            // ECANCELED: by us, at the close, or because the thread that submitted it is gone.
            Some(libc::EINTR | libc::ECANCELED) => Outcome::Retry,
            _ => Outcome::Done,
        }
    }
}

fn to_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
