//! What is done for a socket of which there is an event, or which was left before it was empty.

use std::io;
use std::mem;

#[cfg(duopoll_faults)]
use duopoll_core::faults;
use duopoll_core::syscalls::{self, ACCEPTS_PER_TURN, uninterrupted};
use duopoll_core::{Inputs, Kind, Lease, Next, Operators, Poll, Ready, Token};
use rustix::event::epoll::{Event, EventFlags};

use super::{Epoll, NO_VECTOR, READ_BUDGET_BYTES, WAKER, is_would_block};
#[cfg(duopoll_faults)]
use super::{LISTENER_EVENTS, STREAM_EVENTS};
use crate::notices;
use crate::sys;

/// Notices taken from an error queue before the rest is left for the next event.
const NOTICES_MAX: usize = 64;

/// No more bytes follow.
const ENDS: EventFlags = EventFlags::HUP.union(EventFlags::RDHUP);
/// A read stops short of what may follow: at the end, at an error, which is read like bytes behind those that came before
/// it, and at an urgent byte.
const STOPS: EventFlags = ENDS.union(EventFlags::ERR).union(EventFlags::PRI);
/// A send may go on, or fails.
const SENDS: EventFlags = EventFlags::OUT.union(EventFlags::HUP).union(EventFlags::ERR);

impl Epoll {
    #[inline]
    pub(super) fn handle<O: Operators>(&mut self, event: Event, operators: &mut O) {
        let (data, events) = (event.data.u64(), event.flags);
        if data == WAKER {
            self.stats.wakeups += 1;
            return;
        }
        let token = Token::from_bits(data);
        let Some(socket) = self.sockets.get_mut(token) else {
            self.stats.stale_events += 1;
            return;
        };
        if socket.kind == Kind::Listener {
            socket.readable = true;
            if !socket.listed {
                self.accept(token, operators);
            }
            return;
        }
        if matches!(socket.kind, Kind::Watched | Kind::Datagrams) {
            let readable = events.intersects(STOPS | EventFlags::IN);
            let writable = events.intersects(SENDS);
            if operators.ready(token, Ready { readable, writable }) == Next::Stop {
                self.ignore_room(token);
            }
            return;
        }
        if socket.kind == Kind::Connecting && !self.has_connected(token, events, operators) {
            return;
        }
        let mut events = events;
        if events.intersects(EventFlags::ERR)
            && self.drain_error_queue(token, operators)
            && !events.intersects(ENDS)
        {
            // It was for the notices. A connection that is broken has ended, too.
            events.remove(EventFlags::ERR);
        }
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if events.intersects(STOPS | EventFlags::IN) {
            socket.stops_short |= events.intersects(STOPS);
            socket.readable = true;
            if !socket.listed && !socket.stopped {
                self.read(token, operators);
            }
        }
        if events.intersects(SENDS) {
            if let Some(socket) = self.sockets.get_mut(token) {
                if mem::take(&mut socket.blocked) {
                    self.send(token, operators);
                }
            }
        }
    }

    /// Reports how a connect has ended, if it has. Says whether the socket is a stream now.
    fn has_connected<O: Operators>(
        &mut self,
        token: Token,
        events: EventFlags,
        operators: &mut O,
    ) -> bool {
        let Some(socket) = self.sockets.get_mut(token) else { return false };
        if !events.intersects(SENDS) {
            return false;
        }
        self.stats.syscalls += 1;
        let result = syscalls::connect_result(socket.fd);
        let connected = result.is_ok();
        if connected {
            socket.kind = Kind::Stream;
        } else {
            socket.ended = true;
        }
        operators.connected(token, result);
        connected
    }

    /// Takes the notices from the error queue: they raise `EPOLLERR`, and are not errors. Says whether there were any.
    fn drain_error_queue<O: Operators>(&mut self, token: Token, operators: &mut O) -> bool {
        // A Unix socket has no such queue, and would give its error instead.
        let Some(socket) = self.sockets.get_mut(token).filter(|socket| !socket.is_unix) else {
            return false;
        };
        let fd = socket.fd;
        let mut taken = 0;
        while taken < NOTICES_MAX {
            self.stats.syscalls += 1;
            if !notices::take(token, fd, operators) {
                return taken > 0;
            }
            taken += 1;
        }
        socket.more_notices = true;
        self.serve_again(token);
        true
    }

    /// Reads until the socket is empty, the operators say stop, or the budget is spent.
    #[inline]
    fn read<O: Operators>(&mut self, token: Token, operators: &mut O) {
        let mut vectors = [NO_VECTOR; 2];
        let mut budget = READ_BUDGET_BYTES;
        while let Some(socket) = self.sockets.get_mut(token) {
            if !socket.readable || socket.ended {
                return;
            }
            if budget == 0 {
                return self.serve_again(token);
            }
            let (fd, is_unix) = (socket.fd, socket.is_unix);
            let lent = operators.inputs(token, Lease::UntilAck, &mut vectors);
            let Inputs::Vectors(count) = lent else { return self.stop(token) };
            #[cfg(duopoll_faults)]
            let count = faults::shorten_inputs(&mut vectors[..count]);
            let vectors = &vectors[..count];
            let lent: usize = vectors.iter().map(|vector| vector.iov_len).sum();
            self.stats.syscalls += 1;
            let mut stopped_short = false;
            let result = uninterrupted(|| {
                // SAFETY: the operators lend the vectors until the acknowledgement.
                unsafe {
                    if is_unix {
                        sys::receive_message(fd, vectors, &mut stopped_short)
                    } else {
                        sys::receive(fd, vectors)
                    }
                }
            });
            #[cfg(duopoll_faults)]
            sys::faults::report_again(&self.epoll, fd, STREAM_EVENTS, token.to_bits());
            let received = *result.as_ref().unwrap_or(&0);
            let would_block = is_would_block(&result);
            socket.ended = received == 0 && !would_block;
            stopped_short |= socket.stops_short;
            let empty = would_block || (received < lent && !stopped_short);
            if empty {
                socket.readable = false;
                socket.stops_short = false;
            }
            self.stats.receives += 1;
            self.stats.received_bytes += received as u64;
            budget = budget.saturating_sub(received);
            // SAFETY: the kernel wrote so many bytes, or none.
            if unsafe { operators.input_ack(token, result) } == Next::Stop {
                return self.stop(token);
            }
            if empty {
                return;
            }
        }
    }

    fn stop(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.stopped = true;
        }
    }

    pub(super) fn serve_again(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(token) {
            if !mem::replace(&mut socket.listed, true) {
                self.again.push_back(token);
            }
        }
    }

    fn accept<O: Operators>(&mut self, token: Token, operators: &mut O) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(socket) = self.sockets.get_mut(token) else { return };
            if socket.stopped {
                return;
            }
            let fd = socket.fd;
            self.stats.syscalls += 1;
            let result = syscalls::accept(fd);
            if let Err(error) = &result {
                if error.kind() == io::ErrorKind::WouldBlock {
                    socket.readable = false;
                    // A test may want it to, and the kernel then has reported what there is.
                    #[cfg(duopoll_faults)]
                    let _ = sys::epoll_modify(&self.epoll, fd, LISTENER_EVENTS, token.to_bits());
                    return;
                }
                if syscalls::is_no_listener(error) {
                    socket.stopped = true;
                    socket.readable = false;
                }
            }
            self.stats.accepts += u64::from(result.is_ok());
            if operators.accepted(token, result) == Next::Stop {
                return self.stop(token);
            }
        }
        self.serve_again(token);
    }

    pub(super) fn serve<O: Operators>(&mut self, token: Token, operators: &mut O) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        socket.listed = false;
        if mem::take(&mut socket.more_notices) {
            self.drain_error_queue(token, operators);
        }
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let (kind, receives) = (socket.kind, socket.readable && !socket.stopped);
        if mem::take(&mut socket.unsent) {
            self.send(token, operators);
        }
        match kind {
            Kind::Stream if receives => self.read(token, operators),
            Kind::Listener if receives => self.accept(token, operators),
            _ => {}
        }
    }
}
