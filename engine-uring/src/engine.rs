//! The engine: one ring, and the handling of its completions.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "zerocopy")]
use duopoll_core::TokenSlab;
#[cfg(duopoll_faults)]
use duopoll_core::faults;
use duopoll_core::{
    Capabilities, Deregister, EngineStats, Inputs, Kind, Lease, Next, Notify, Operators, Outputs,
    Pending, Poll, Token,
};
use io_uring::{cqueue, opcode, squeue, types::Fd};
use libc::iovec;

use crate::buffers::{self, Buffers, Taken};
use crate::features::{Feature, Features};
use crate::probe::{self, Plan, Unavailable};
use crate::ring::Ring;
use crate::socket::{Op, Socket, Sockets};
use crate::sys;
use crate::unhandled::Unhandled;
#[cfg(feature = "zerocopy")]
use crate::zerocopy::ZeroCopy;

/// Completions handled in one turn, at most. What is left is handled in the next, before it waits.
pub const COMPLETIONS_PER_TURN: usize = 128;
/// Connections accepted in one turn, at most: what else has completed does not wait behind a storm of them.
const ACCEPTS_PER_TURN: usize = 64;

/// When an operation has not completed so long after its socket was shut down, it is cancelled.
const CLOSE_GUARD: Duration = Duration::from_secs(5);

/// Bytes up to which a message in a shared buffer is copied out of it, so that it does not keep the whole.
const COPIED_BYTES_MAX: usize = 2 << 10;
/// Sends that nobody waits for are not to wait either: they complete when they are submitted, and the wait that submits
/// them leaves their completions out. Of so many bytes together, since their memory is held until the next event.
const QUICK_BYTES_MAX: usize = 64 << 10;
/// How long such a wait may last: one of the sends may have been taken in part, and the rest is to be sent. Longer than
/// the kernel's tick, for which it has set its timer anyway: one of a millisecond cost 5 us a wait in a virtual machine.
const QUICK_PATIENCE: Duration = Duration::from_millis(10);
/// When buffers for which there was no memory are tried again.
const NO_MEMORY_RETRY: Duration = Duration::from_millis(10);

/// Never raise SIGPIPE. And not `MSG_WAITALL`: a send to a slow peer would complete when the last byte is taken, and
/// look idle until then.
pub(crate) const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;

/// What poll(2) says of a stream whose peer has ended, or that is broken.
const HAS_ENDED: i16 = libc::POLLRDHUP | libc::POLLHUP;

const NO_VECTOR: iovec = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The waker's place among the tokens; no slab gives it.
const WAKER: Token = Token::new(u32::MAX, u32::MAX);

/// [`Poll`] on io_uring.
///
/// Belongs to the thread that made it, since the kernel refuses others:
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<duopoll_uring::Uring>();
/// ```
#[derive(Debug)]
pub struct Uring {
    pub(crate) ring: Ring,
    #[cfg(feature = "zerocopy")]
    pub(crate) allowed: Features,
    pub(crate) features: Features,
    /// Where multishot receives put what comes.
    buffers: Option<Buffers>,
    waker: Arc<EventFd>,
    waker_armed: bool,
    pub(crate) sockets: Sockets,
    /// Sockets that receive, or accept, again with the next submission.
    to_receive: Vec<Token>,
    /// Sockets that receive again when the kernel has buffers.
    starved: Vec<Token>,
    /// Sockets for whose send there was no room in the queue.
    to_send: VecDeque<Token>,
    /// Cancellations for which there was no room.
    to_cancel: VecDeque<u64>,
    /// Sockets that were shut down, and when: oldest first.
    closing: VecDeque<(Instant, Token)>,
    /// Completions that were taken and not handled yet.
    completions: VecDeque<cqueue::Entry>,
    /// What the first so many of them say of streams, if anybody has asked in this turn.
    unhandled: Unhandled,
    /// Accepts that have completed and wait for a later turn.
    accepts: VecDeque<cqueue::Entry>,
    /// How many more are handled in this turn.
    accepts_left: usize,
    /// The last turn left completions for the next.
    more: bool,
    /// Sends that are queued and complete when they are submitted, and their bytes.
    quick_sends: u32,
    quick_bytes: usize,
    #[cfg(feature = "zerocopy")]
    pub(crate) zero_copies: TokenSlab<ZeroCopy>,
    pub(crate) stats: EngineStats,
}

#[derive(Debug)]
struct EventFd(OwnedFd);

impl Notify for EventFd {
    fn notify(&self) {
        // EAGAIN: its counter is at its end, so the poll has fired already.
        let _ = sys::eventfd_write(&self.0);
    }
}

impl Uring {
    /// A ring of its own, on the calling thread, with what the kernel has proven and `allowed` has. The proof is a
    /// self-test of about a millisecond, made once per process.
    ///
    /// # Errors
    /// [`Unavailable`] says what the kernel refused, the likely cause, and what would help.
    pub fn new(allowed: Features) -> Result<Uring, Unavailable> {
        let Plan { setup, features } = probe::plan(allowed)?;
        let mut ring = Ring::new(setup).map_err(|error| Unavailable::setup(&error))?;
        let waker = sys::eventfd().map_err(|error| Unavailable::step("eventfd", &error))?;
        if features.contains(Feature::NoIowait) {
            ring.wait_without_iowait();
        }
        let buffers = if features.contains(Feature::MultishotReceive) {
            let incremental = features.contains(Feature::IncrementalBuffers);
            let refused = |error| Unavailable::step("io_uring_register", &error);
            Some(Buffers::new(&ring, incremental).map_err(refused)?)
        } else {
            None
        };
        Ok(Uring {
            ring,
            #[cfg(feature = "zerocopy")]
            allowed,
            features,
            buffers,
            waker: Arc::new(EventFd(waker)),
            waker_armed: false,
            sockets: Sockets::default(),
            to_receive: Vec::new(),
            starved: Vec::new(),
            to_send: VecDeque::new(),
            to_cancel: VecDeque::new(),
            closing: VecDeque::new(),
            completions: VecDeque::with_capacity(COMPLETIONS_PER_TURN),
            unhandled: Unhandled::default(),
            accepts: VecDeque::new(),
            accepts_left: 0,
            more: false,
            quick_sends: 0,
            quick_bytes: 0,
            #[cfg(feature = "zerocopy")]
            zero_copies: TokenSlab::new(),
            stats: EngineStats::default(),
        })
    }

    /// Queues everything that waits for the next submission. False if the operators lent nothing for some of it: then
    /// they may have set a timer, which the timeout of this turn does not know.
    fn queue<O: Operators>(&mut self, operators: &mut O) -> bool {
        if !self.waker_armed && self.ring.make_room() {
            let poll = opcode::PollAdd::new(Fd(self.waker.0.as_raw_fd()), libc::POLLIN as u32);
            let entry = poll.multi(true).build().user_data(Op::Wake.user_data(WAKER));
            // SAFETY: points to no memory.
            unsafe { self.ring.push(&entry) };
            self.waker_armed = true;
        }
        while let Some(user_data) = self.to_cancel.pop_front() {
            if !self.ring.make_room() {
                self.to_cancel.push_front(user_data);
                break;
            }
            let entry = opcode::AsyncCancel::new(user_data).build();
            // SAFETY: points to no memory.
            unsafe { self.ring.push(&entry.user_data(Op::Cancel.user_data(WAKER))) };
        }
        for _ in 0..self.to_send.len() {
            let Some(token) = self.to_send.pop_front() else { break };
            if let Some(socket) = self.sockets.get(token) {
                socket.send_later = false;
                self.send(token, operators);
            }
        }
        let mut to_receive = mem::take(&mut self.to_receive);
        let (mut queued, mut refused) = (0, false);
        let starving = self.buffers.as_ref().is_some_and(Buffers::is_empty);
        for &token in &to_receive {
            if !self.ring.make_room() {
                break;
            }
            queued += 1;
            let Some(socket) = self.sockets.get(token) else { continue };
            if starving && socket.kind == Kind::Stream {
                // It would end at once, whether there is something to receive or not.
                self.starved.push(token);
                continue;
            }
            socket.listed = false;
            if socket.inbound.is_some() || socket.stopped || socket.ended || socket.closing {
                continue;
            }
            socket.cancelled = false;
            match socket.kind {
                Kind::Stream if self.buffers.is_some() => self.queue_receive_multi(token),
                Kind::Stream if socket.readable => refused |= !self.queue_receive(token, operators),
                // Without a buffer.
                Kind::Stream => self.queue_poll(token, Op::PollIn),
                Kind::Listener => self.queue_accept(token),
                Kind::Connecting => self.queue_poll(token, Op::Connect),
            }
        }
        to_receive.drain(..queued);
        mem::swap(&mut self.to_receive, &mut to_receive);
        self.to_receive.append(&mut to_receive);
        !refused
    }

    /// False if the operators lend nothing.
    fn queue_receive<O: Operators>(&mut self, token: Token, operators: &mut O) -> bool {
        let mut vectors = [NO_VECTOR; 2];
        let lent = operators.inputs(token, Lease::InFlight, &mut vectors);
        let Some(socket) = self.sockets.get(token) else { return true };
        let Inputs::Vectors(count) = lent else {
            socket.stopped = true;
            return false;
        };
        #[cfg(duopoll_faults)]
        let count = faults::shorten_inputs(&mut vectors[..count]);
        let fd = Fd(socket.fd);
        socket.inbound = Some(Op::Receive);
        let lent: usize = vectors[..count].iter().map(|vector| vector.iov_len).sum();
        socket.lent = saturating(lent);
        let entry = if count == 1 {
            let len = u32::try_from(vectors[0].iov_len).unwrap_or(u32::MAX);
            opcode::Recv::new(fd, vectors[0].iov_base.cast(), len).build()
        } else {
            self.ring.next_vectors()[..2].copy_from_slice(&vectors);
            opcode::RecvMsg::new(fd, self.ring.next_header(2)).build()
        };
        // SAFETY: the operators lend the vectors until the acknowledgement, which follows the completion.
        unsafe { self.ring.push(&entry.user_data(Op::Receive.user_data(token))) };
        true
    }

    fn queue_receive_multi(&mut self, token: Token) {
        let Some(socket) = self.sockets.get(token) else { return };
        let op = Op::ReceiveMulti;
        socket.inbound = Some(op);
        socket.fresh = true;
        let entry = opcode::RecvMulti::new(Fd(socket.fd), buffers::GROUP).build();
        // SAFETY: the buffers stay until the operation is over, or are leaked.
        unsafe { self.ring.push(&entry.user_data(op.user_data(token))) };
    }

    fn queue_accept(&mut self, token: Token) {
        let Some(socket) = self.sockets.get(token) else { return };
        let (fd, flags) = (Fd(socket.fd), libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        let (op, entry) = if self.features.contains(Feature::MultishotAccept) {
            (Op::AcceptMulti, opcode::AcceptMulti::new(fd).flags(flags).build())
        } else {
            let nowhere = std::ptr::null_mut();
            let accept = opcode::Accept::new(fd, nowhere, std::ptr::null_mut());
            (Op::Accept, accept.flags(flags).build())
        };
        socket.inbound = Some(op);
        // SAFETY: points to no memory.
        unsafe { self.ring.push(&entry.user_data(op.user_data(token))) };
    }

    /// Waits for readiness, where the kernel did not wait by itself: an older one, or a non-blocking listener.
    fn queue_poll(&mut self, token: Token, op: Op) {
        let Some(socket) = self.sockets.get(token).filter(|socket| !socket.closing) else { return };
        let (events, direction) = match op {
            Op::PollOut => (libc::POLLOUT, &mut socket.outbound),
            Op::Connect => (libc::POLLOUT, &mut socket.inbound),
            _ => (libc::POLLIN | libc::POLLRDHUP, &mut socket.inbound),
        };
        let entry = opcode::PollAdd::new(Fd(socket.fd), events as u32).build();
        if self.ring.make_room() {
            *direction = Some(op);
            // SAFETY: points to no memory.
            unsafe { self.ring.push(&entry.user_data(op.user_data(token))) };
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

    fn receive_later(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get(token) {
            if !mem::replace(&mut socket.listed, true) {
                self.to_receive.push(token);
            }
        }
    }

    fn send_later(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get(token) {
            if !mem::replace(&mut socket.send_later, true) {
                self.to_send.push_back(token);
            }
        }
    }

    fn handle_completions<O: Operators>(&mut self, operators: &mut O) {
        self.unhandled.clear();
        self.accepts_left = ACCEPTS_PER_TURN;
        let mut left = COMPLETIONS_PER_TURN;
        while self.accepts_left > 0 {
            let Some(accept) = self.accepts.pop_front() else { break };
            self.accepts_left -= 1;
            left -= 1;
            self.handle(&accept, operators);
        }
        while left > 0 {
            if self.completions.is_empty() {
                self.ring.completions(&mut self.completions, left);
            }
            let Some(completion) = self.completions.pop_front() else { break };
            if is_accept(&completion) {
                if self.accepts_left == 0 {
                    self.accepts.push_back(completion);
                    continue;
                }
                self.accepts_left -= 1;
            }
            left -= 1;
            self.handle(&completion, operators);
        }
        self.more =
            !self.accepts.is_empty() || !self.completions.is_empty() || self.ring.has_completions();
    }

    /// What completions that were not handled yet say of a stream.
    fn unhandled(&mut self, token: Token) -> Pending {
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
        self.more |= !self.completions.is_empty();
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
            let fd = self.sockets.get(token).map(|socket| socket.fd);
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
        let Some(socket) = self.sockets.get(token) else {
            // A slot is kept until its last completion, so this is a completion that we never asked for.
            self.stats.stale_events += 1;
            if is_accept(completion) && result >= 0 {
                // SAFETY: accept gave a new descriptor, which nobody else owns.
                drop(unsafe { OwnedFd::from_raw_fd(result) });
            }
            return;
        };
        match op {
            Op::Send | Op::PollOut => socket.outbound = None,
            _ if more => {}
            _ => socket.inbound = None,
        }
        match op {
            Op::Receive => self.received(token, result, operators),
            Op::ReceiveMulti => self.received_multi(token, result, completion.flags(), operators),
            Op::Send if mem::take(&mut socket.quick) => {
                self.sent(token, result, Operators::late_output_ack, operators);
            }
            Op::Send => self.sent(token, result, Operators::output_ack, operators),
            Op::Accept | Op::AcceptMulti => self.accepted(token, result, operators),
            Op::Connect => self.connected(token, result, operators),
            // Whatever the poll found, the operation itself reports it better.
            Op::PollIn => {
                socket.readable = true;
                self.receive_later(token);
            }
            Op::PollOut => self.send_later(token),
            #[cfg(feature = "zerocopy")]
            Op::SendZeroCopy => {}
            Op::Wake | Op::Cancel => {}
        }
        self.release_if_idle(token, operators);
    }

    fn received<O: Operators>(&mut self, token: Token, result: i32, operators: &mut O) {
        self.stats.receives += 1;
        let result = to_result(result);
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
        let Some(socket) = self.sockets.get(token) else { return };
        // What did not fill its vectors has emptied the socket.
        socket.readable = outcome == Outcome::Retry && saturating(received) >= socket.lent;
        match outcome {
            Outcome::Done => socket.ended = true,
            _ if next == Next::Stop => socket.stopped = true,
            _ => self.receive_later(token),
        }
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
        let next = if let Some(mut taken) = self.take_received(&result, flags) {
            let copied = match taken.bytes() {
                few if few.len() <= COPIED_BYTES_MAX => operators.copy_in(token, few),
                _ => None,
            };
            copied.unwrap_or_else(|| operators.donate(token, taken.into_slice()))
        } else {
            self.ended_receive(token, result, operators)
        };
        if cqueue::more(flags) && self.may_miss_the_end(token) {
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
        // SAFETY: a completion says so.
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
                return Next::More;
            }
            Err(error) if Outcome::of_error(error) != Outcome::Done => return Next::More,
            _ => {}
        }
        if let Some(socket) = self.sockets.get(token) {
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
        let Some(socket) = self.sockets.get(token) else { return false };
        if !mem::take(&mut socket.fresh) {
            return false;
        }
        let fd = socket.fd;
        self.stats.syscalls += 1;
        sys::ready(fd) & HAS_ENDED != 0
    }

    /// Receives, or accepts, nothing more.
    fn stop(&mut self, token: Token) {
        let Some(socket) = self.sockets.get(token) else { return };
        socket.stopped = true;
        self.cancel_inbound(token);
    }

    /// Ends what goes on by itself.
    fn cancel_inbound(&mut self, token: Token) {
        let Some(socket) = self.sockets.get(token) else { return };
        if let Some(op @ (Op::ReceiveMulti | Op::AcceptMulti)) = socket.inbound {
            if !mem::replace(&mut socket.cancelled, true) {
                self.to_cancel.push_back(op.user_data(token));
            }
        }
    }

    pub(crate) fn sent<O: Operators>(
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
        if let Some(socket) = self.sockets.get(token) {
            socket.slow = result.as_ref().map_or(true, |n| saturating(*n) < socket.sending);
            self.stats.short_sends += u64::from(socket.slow && result.is_ok());
        }
        let next = acknowledge(operators, token, result);
        match outcome {
            Outcome::WouldBlock => self.queue_poll(token, Op::PollOut),
            _ if next == Next::More => self.send(token, operators),
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
        let Some(socket) = self.sockets.get(token).filter(|socket| !socket.closing) else { return };
        self.stats.syscalls += 1;
        let result = polled.and_then(|_| sys::connect_result(socket.fd));
        if result.is_ok() {
            socket.kind = Kind::Stream;
            self.receive_later(token);
        } else {
            socket.ended = true;
        }
        operators.connected(token, result);
    }

    fn accepted<O: Operators>(&mut self, token: Token, result: i32, operators: &mut O) {
        let result = to_result(result).map(|fd| {
            // SAFETY: accept gave a new descriptor, which nobody else owns.
            unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
        });
        let outcome = match &result {
            Ok(_) => Outcome::Retry,
            Err(error) => Outcome::of_error(error),
        };
        self.stats.accepts += u64::from(result.is_ok());
        match (outcome, result) {
            (Outcome::WouldBlock, _) => self.queue_poll(token, Op::PollIn),
            (Outcome::Retry, Err(_)) => self.receive_later(token),
            (_, result) => {
                let gone = matches!(
                    result.as_ref().map_err(io::Error::raw_os_error),
                    Err(Some(libc::EINVAL | libc::EBADF | libc::ENOTSOCK))
                );
                let next = operators.accepted(token, result);
                let Some(socket) = self.sockets.get(token) else { return };
                // Not a listening socket any more: asking again would spin.
                socket.ended = gone;
                if next == Next::Stop {
                    self.stop(token);
                } else {
                    // Unless it is still armed.
                    self.receive_later(token);
                }
            }
        }
    }

    fn woken(&mut self, armed: bool) {
        self.stats.wakeups += 1;
        self.waker_armed = armed;
        if !armed {
            // A poll looks at the counter when it is armed: unless that is zero, it would fire at once, for ever.
            self.stats.syscalls += 1;
            sys::eventfd_reset(&self.waker.0);
        }
    }

    pub(crate) fn release_if_idle<O: Operators>(&mut self, token: Token, operators: &mut O) {
        if self.sockets.get(token).is_some_and(|socket| socket.closing && socket.is_idle()) {
            self.sockets.remove(token);
            // SAFETY: nothing of it is in flight, and its completions have all been handled.
            unsafe { operators.released(token) };
        }
    }

    fn cancel(&mut self, token: Token) {
        let Some(socket) = self.sockets.get(token) else { return };
        for op in [socket.inbound, socket.outbound].into_iter().flatten() {
            let token = match op {
                #[cfg(feature = "zerocopy")]
                Op::SendZeroCopy => self.zero_copy_in_flight(token).unwrap_or(token),
                _ => token,
            };
            self.to_cancel.push_back(op.user_data(token));
        }
    }

    /// Gives the kernel buffers. If it has none now, when to try again.
    fn fill_buffers(&mut self) -> Option<Duration> {
        let buffers = self.buffers.as_mut()?;
        buffers.end_turn();
        if !buffers.fill() {
            return Some(NO_MEMORY_RETRY);
        }
        self.to_receive.append(&mut self.starved);
        None
    }

    /// Cancels what has outlived the shutdown of its socket. Says when it is to be called again.
    fn guard_closing(&mut self) -> Option<Duration> {
        while let Some(&(since, token)) = self.closing.front() {
            let left = CLOSE_GUARD.saturating_sub(since.elapsed());
            if !left.is_zero() && self.sockets.get(token).is_some() {
                return Some(left);
            }
            self.closing.pop_front();
            self.cancel(token);
        }
        None
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

fn is_accept(completion: &cqueue::Entry) -> bool {
    matches!(Op::parse(completion.user_data()), Some((Op::Accept | Op::AcceptMulti, _)))
}

fn saturating(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn to_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl Poll for Uring {
    unsafe fn register<O: Operators>(
        &mut self,
        token: Token,
        fd: RawFd,
        kind: Kind,
        _operators: &mut O,
    ) -> io::Result<()> {
        self.sockets.insert(Socket::new(fd, token, kind));
        self.receive_later(token);
        Ok(())
    }

    fn receive<O: Operators>(&mut self, token: Token, _operators: &mut O) {
        if let Some(socket) = self.sockets.get(token) {
            socket.stopped = false;
            self.receive_later(token);
        }
    }

    fn send<O: Operators>(&mut self, token: Token, operators: &mut O) {
        let Some(socket) = self.sockets.get(token) else { return };
        if socket.outbound.is_some() || socket.closing {
            // Somebody waits for it, so the wait must not leave it out.
            self.quick_sends = 0;
            return;
        }
        let fd = socket.fd;
        if !self.ring.make_room() {
            return self.send_later(token);
        }
        let vectors = self.ring.next_vectors();
        let (count, bytes, flags, awaited) = match operators.outputs(token, vectors) {
            Outputs::Vectors { count, bytes, flags, awaited } => (count, bytes, flags, awaited),
            Outputs::Nothing => return,
            Outputs::Finish => {
                self.stats.syscalls += 1;
                // As a system call: IORING_OP_SHUTDOWN would be punted to a worker thread. ENOTCONN: the peer was
                // faster, and there is nothing left to shut down.
                let _ = sys::shutdown(fd, libc::SHUT_WR);
                return;
            }
        };
        #[cfg(duopoll_faults)]
        let (count, bytes) = faults::shorten_outputs(&mut vectors[..count], bytes);
        #[cfg(feature = "zerocopy")]
        if flags & libc::MSG_ZEROCOPY != 0 {
            return self.queue_zero_copy(token, count, bytes);
        }
        let Some(socket) = self.sockets.get(token) else { return };
        socket.outbound = Some(Op::Send);
        socket.sending = saturating(bytes);
        let quick = !awaited && !socket.slow && self.quick_bytes + bytes <= QUICK_BYTES_MAX;
        socket.quick = quick;
        let flags = if quick {
            self.quick_sends += 1;
            self.quick_bytes += bytes;
            flags | SEND_FLAGS | libc::MSG_DONTWAIT
        } else {
            flags | SEND_FLAGS
        };
        let first = vectors[0];
        let entry: squeue::Entry = if count == 1 {
            let len = u32::try_from(bytes).unwrap_or(u32::MAX);
            opcode::Send::new(Fd(fd), first.iov_base.cast(), len).flags(flags).build()
        } else {
            let header = self.ring.next_header(count);
            opcode::SendMsg::new(Fd(fd), header).flags(flags as u32).build()
        };
        // SAFETY: the operators keep the vectors valid until the acknowledgement, which follows the completion.
        unsafe { self.ring.push(&entry.user_data(Op::Send.user_data(token))) };
    }

    fn deregister<O: Operators>(&mut self, token: Token, how: Deregister, operators: &mut O) {
        let Some(socket) = self.sockets.get(token) else { return };
        if mem::replace(&mut socket.closing, true) {
            return;
        }
        let fd = socket.fd;
        let idle = socket.is_idle();
        match how {
            // Either ends what is in flight, now or when it is submitted.
            Deregister::Abort => {
                self.stats.syscalls += 1;
                sys::reset(fd);
            }
            Deregister::Close if idle => {}
            Deregister::Close | Deregister::Shutdown => {
                self.stats.syscalls += 1;
                // ENOTCONN: the peer was faster.
                let _ = sys::shutdown(fd, libc::SHUT_RDWR);
            }
            Deregister::Leave => self.cancel(token),
        }
        if !idle {
            self.closing.push_back((Instant::now(), token));
            self.quick_sends = 0;
        }
        self.release_if_idle(token, operators);
    }

    fn wait<O: Operators>(
        &mut self,
        timeout: Option<Duration>,
        operators: &mut O,
    ) -> io::Result<()> {
        let guard = self.guard_closing();
        let retry = self.fill_buffers();
        let lent = self.queue(operators);
        let timeout = timeout.into_iter().chain(guard).chain(retry).min();
        let unqueued =
            !self.to_receive.is_empty() || !self.to_send.is_empty() || !self.to_cancel.is_empty();
        let ready = self.more || unqueued || !lent || timeout == Some(Duration::ZERO);
        self.stats.waits += 1;
        // What completes when it is submitted is not what we wait for.
        let quick = mem::take(&mut self.quick_sends);
        self.quick_bytes = 0;
        if ready {
            self.ring.enter(0, timeout.filter(Duration::is_zero))?;
        } else {
            let patience = (quick > 0).then_some(QUICK_PATIENCE);
            let timeout = timeout.into_iter().chain(patience).min();
            self.ring.enter(quick + 1, timeout)?;
        }

        self.stats.completion_overflows += u64::from(self.ring.overflows());
        self.handle_completions(operators);
        Ok(())
    }

    fn pending(&mut self, token: Token) -> Pending {
        let Some(socket) = self.sockets.get(token) else { return Pending::default() };
        let (fd, kind, over) = (socket.fd, socket.kind, socket.ended);
        self.stats.syscalls += 1;
        let ready = sys::ready(fd);
        let hung_up = ready & HAS_ENDED != 0;
        let mut pending =
            Pending { room: ready & libc::POLLOUT != 0 || hung_up, ..Pending::default() };
        if kind == Kind::Connecting {
            pending.room |= ready & libc::POLLERR != 0;
            return pending;
        }
        if ready & libc::POLLIN != 0 && !over {
            self.stats.syscalls += 1;
            pending.bytes = sys::unread_bytes(fd);
        }
        // Last, since the kernel may complete something in any system call.
        let unhandled = self.unhandled(token);
        pending.bytes += unhandled.bytes;
        pending.room |= unhandled.room;
        pending.ended = !over && (hung_up || unhandled.ended);
        if pending.ended && !unhandled.ended {
            // A receive that goes on may wait for an end that has been already: see `may_miss_the_end`.
            self.cancel_inbound(token);
        }
        pending
    }

    fn waker(&self) -> Arc<dyn Notify> {
        self.waker.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = Capabilities::new("io_uring", self.features.to_string());
        #[cfg(feature = "zerocopy")]
        let capabilities = capabilities.with_zerocopy_refusal(self.zerocopy_refusal());
        capabilities
    }

    fn stats(&self) -> EngineStats {
        let mut stats = self.stats;
        stats.syscalls += self.ring.enters;
        stats
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.ring.completions(&mut self.completions, usize::MAX);
        let untaken = self.accepts.iter().chain(&self.completions);
        for accept in untaken.filter(|completion| is_accept(completion)) {
            if accept.result() >= 0 {
                // SAFETY: accept gave a new descriptor, which nobody else owns.
                drop(unsafe { OwnedFd::from_raw_fd(accept.result()) });
            }
        }
        if self.sockets.any_inbound() {
            // The kernel may still write to them.
            mem::forget(self.buffers.take());
        }
    }
}

#[cfg(test)]
mod tests;
