//! All connections and listeners of one poller: what the engine calls, and what its thread does between two turns.
//!
//! The driver owns the memory that is lent to the kernel. A slot is freed when the engine says that the kernel holds
//! nothing of it any more, and not before; if the driver itself is dropped earlier, memory that is still lent is
//! leaked rather than freed.

#[cfg(feature = "zerocopy")]
mod zerocopy;

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use libc::iovec;

use crate::buffer::{Chain, Intake};
use crate::connection::{self, Limits, NEVER, Reader, Shared, Wakers, Writer};
use crate::mailbox::{Command, LocalBlocks, Mailbox};
use crate::memory::Slice;
use crate::poll::{
    Deregister, Inputs, Kind, Lease, Next, Operators, Outputs, Poll, SEND_VECTORS_MAX,
};
use crate::timer::{Tick, Wheel};
use crate::token::{Token, TokenSlab};

/// How long a closed connection may take to send what was flushed before, in milliseconds.
const CLOSE_SEND_MS: Tick = 10_000;
/// How long a closed connection drops what still arrives, waiting for the peer's FIN, in milliseconds. A socket that
/// is closed with bytes unread sends a reset, which can destroy our last bytes on their way to the peer's user.
const CLOSE_RECEIVE_MS: Tick = 1_000;
/// When a receive for which there was no memory is tried again, in milliseconds.
const NO_MEMORY_RETRY_MS: Tick = 10;
/// Bytes that are copied, if need be, out of a block that others share, while their reader has more to read already.
const LAGGING_COPY_BYTES: usize = 16 << 10;
/// When accepting is tried again after the process or the machine ran out of something, in milliseconds: doubled
/// from the first to the last.
const ACCEPT_RETRY_MS: (Tick, Tick) = (5, 640);

/// The connections and listeners of one poller.
pub struct Driver {
    slots: TokenSlab<Slot>,
    wheel: Wheel,
    now: Tick,
    /// The engine may have slept since `now`.
    slept: bool,
    /// A send was given out whose acknowledgement may be kept back.
    unawaited: bool,
    /// When the engine last went to sleep with such.
    slept_at: Tick,
    mailbox: Arc<Mailbox>,
    /// Connections that have a block from this turn.
    touched: Vec<Token>,
    accepted: Vec<Accepted>,
    /// Connections in phase `Open`.
    open: usize,
    /// Groups whose connections are to end between two requests.
    draining: Vec<Draining>,
    #[cfg(feature = "zerocopy")]
    zero_copies: zerocopy::ZeroCopies,
    stats: DriverStats,
}

/// Connections that are ended together, such as those of one server. The default is a group like any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Group(u32);

impl Group {
    /// The group of this number.
    pub const fn new(number: u32) -> Group {
        Group(number)
    }
}

/// A group that drains.
struct Draining {
    group: Group,
    /// Connections of it that are registered, in whatever phase.
    left: usize,
}

/// A connection that was accepted, and by which listener.
#[derive(Debug)]
pub struct Accepted {
    /// The listener.
    pub listener: Token,
    /// The connection.
    pub socket: OwnedFd,
}

/// What a driver has seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverStats {
    /// Connections registered.
    pub connections: u64,
    /// Connections released.
    pub closed: u64,
    /// Connections that were closed by force, with something unsent or unread.
    pub forced: u64,
    /// Connections that were closed by this side and whose peer did not close its own within a second.
    pub close_timeouts: u64,
    /// Times that accepting was put off because the process or the machine ran out of something.
    pub accept_backoffs: u64,
    /// Connections that were gone before they could be accepted.
    pub accept_aborts: u64,
    /// Connections that were ended because no byte had moved for too long.
    pub idle_timeouts: u64,
    /// Sends without a copy that the kernel took.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_sends: u64,
    /// Bytes that left without a copy.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_bytes: u64,
    /// Bytes that were to leave without a copy, and that the kernel copied all the same.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_copied_bytes: u64,
    /// Sends without a copy that the kernel refused, and that went out with one.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_fallbacks: u64,
    /// Bytes that the kernel reads from at this time.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_pinned_bytes: u64,
}

enum Slot {
    Stream(Stream),
    Listener(Listening),
}

struct Stream {
    shared: Arc<Shared>,
    group: Group,
    intake: Intake,
    sending: Chain,
    receiving: Receiving,
    /// The kernel holds vectors of `sending`.
    in_flight: bool,
    /// Sends without a copy, once there was one.
    #[cfg(feature = "zerocopy")]
    zero_copy: Option<Box<zerocopy::Sends>>,
    touched: bool,
    /// Receiving waits for memory.
    starved: bool,
    /// Its user wants nothing to be received.
    paused: bool,
    phase: Phase,
    /// The engine has let go.
    released: bool,
    /// When a byte last moved.
    active: Tick,
}

/// Where a receive goes that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    /// Into the stream's intake.
    Own,
    /// Into the block that small messages share.
    Shared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Closed by its user: what was flushed is being sent.
    Sending,
    /// The FIN is out, or cannot be: waiting for the peer's.
    Receiving,
    /// To be given away when the kernel reads no more from its memory.
    #[cfg(feature = "zerocopy")]
    Leaving,
    /// Given back to the engine, which has not released it yet.
    Deregistered,
}

struct Listening {
    socket: OwnedFd,
    retry_ms: Tick,
    paused: bool,
    deregistered: bool,
}

impl Driver {
    /// A driver without connections, for the poller of this mailbox.
    pub fn new(mailbox: Arc<Mailbox>) -> Driver {
        let now = mailbox.clock().now();
        #[cfg(not(duopoll_faults))]
        let slots = TokenSlab::new();
        #[cfg(duopoll_faults)]
        let slots = TokenSlab::starting_at(crate::faults::generation());
        Driver {
            slots,
            wheel: Wheel::new(now),
            now,
            slept: true,
            unawaited: false,
            slept_at: now,
            mailbox,
            touched: Vec::new(),
            accepted: Vec::new(),
            open: 0,
            draining: Vec::new(),
            #[cfg(feature = "zerocopy")]
            zero_copies: zerocopy::ZeroCopies::default(),
            stats: DriverStats::default(),
        }
    }

    /// Registers a connected socket and gives its two halves.
    ///
    /// # Errors
    /// What the engine says; the socket is closed then.
    pub fn open<P: Poll>(
        &mut self,
        engine: &mut P,
        socket: Option<OwnedFd>,
        limits: Limits,
        group: Group,
    ) -> io::Result<(Reader, Writer)> {
        self.register(engine, socket, limits, group, Kind::Stream)
    }

    /// Registers a socket whose connect(2) is under way and gives its two halves;
    /// [`Writer::poll_connected`] says when it has succeeded.
    ///
    /// # Errors
    /// What the engine says; the socket is closed then.
    pub fn connect<P: Poll>(
        &mut self,
        engine: &mut P,
        socket: Option<OwnedFd>,
        limits: Limits,
        group: Group,
    ) -> io::Result<(Reader, Writer)> {
        self.register(engine, socket, limits, group, Kind::Connecting)
    }

    fn register<P: Poll>(
        &mut self,
        engine: &mut P,
        socket: Option<OwnedFd>,
        limits: Limits,
        group: Group,
        kind: Kind,
    ) -> io::Result<(Reader, Writer)> {
        let fd = socket.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let mut halves = None;
        let token = self.slots.insert_with(|token| {
            let (shared, reader, writer) =
                connection::pair(socket, self.mailbox.clone(), token, limits);
            if kind == Kind::Connecting {
                shared.begin_connecting();
            }
            halves = Some((reader, writer));
            Slot::Stream(Stream::new(shared, group, self.now))
        });
        if let Err(error) = engine.register(token, fd, kind, self) {
            self.slots.remove(token);
            return Err(error);
        }
        self.stats.connections += 1;
        self.open += 1;
        if let Some(draining) = self.draining(group) {
            draining.left += 1;
            self.drain_one(engine, token);
        }
        if limits.idle_timeout.is_some() {
            self.look_at_deadlines(engine, token);
        }
        halves.ok_or_else(|| io::ErrorKind::Other.into())
    }

    /// Registers a listening socket; what it accepts is given by [`take_accepted`](Driver::take_accepted).
    ///
    /// # Errors
    /// What the engine says; the socket is closed then.
    pub fn listen<P: Poll>(&mut self, engine: &mut P, socket: OwnedFd) -> io::Result<Token> {
        let fd = socket.as_raw_fd();
        let token = self.slots.insert_with(|_| Slot::Listener(Listening::new(socket)));
        if let Err(error) = engine.register(token, fd, Kind::Listener, self) {
            self.slots.remove(token);
            return Err(error);
        }
        Ok(token)
    }

    /// Accepts nothing more from this listener until [`resume_listener`](Driver::resume_listener), but for what the
    /// kernel has accepted already.
    pub fn pause_listener(&mut self, token: Token) {
        if let Some(Slot::Listener(listener)) = self.slots.get_mut(token) {
            listener.paused = true;
        }
    }

    /// Accepts from this listener again.
    pub fn resume_listener<P: Poll>(&mut self, engine: &mut P, token: Token) {
        if let Some(Slot::Listener(listener)) = self.slots.get_mut(token) {
            if mem::take(&mut listener.paused) && !listener.deregistered {
                engine.receive(token, self);
            }
        }
    }

    /// The socket of a listener.
    pub fn listener(&self, token: Token) -> Option<BorrowedFd<'_>> {
        match self.slots.get(token) {
            Some(Slot::Listener(listener)) => Some(listener.socket.as_fd()),
            _ => None,
        }
    }

    /// Stops accepting. What the kernel has accepted already may still come.
    pub fn unlisten<P: Poll>(&mut self, engine: &mut P, token: Token) {
        if let Some(Slot::Listener(listener)) = self.slots.get_mut(token) {
            if !mem::replace(&mut listener.deregistered, true) {
                self.wheel.clear(token.index());
                engine.deregister(token, Deregister::Leave, self);
            }
        }
    }

    /// Does what a connection asked for.
    #[inline]
    pub fn apply<P: Poll>(&mut self, engine: &mut P, command: Command) {
        match command {
            Command::Send(token) | Command::SendNow(token) => {
                engine.send(token, self);
                self.go_on_closing(engine, token);
            }
            Command::Receive(token) => self.receive(engine, token),
            Command::Pause(token) => {
                if let Some(stream) = self.stream(token) {
                    stream.paused = true;
                }
            }
            Command::Resume(token) => {
                if let Some(stream) = self.stream(token) {
                    stream.paused = false;
                    self.receive(engine, token);
                }
            }
            Command::Close(token) => self.close(engine, token),
            Command::Abort(token) => self.abort(engine, token),
            Command::Detach(token) => self.detach(engine, token),
            Command::Arm(token) => self.look_at_deadlines(engine, token),
        }
    }

    /// Begins a turn: looks at the clock, and does what is due.
    pub fn begin_turn<P: Poll>(&mut self, engine: &mut P) {
        self.now = self.mailbox.clock().now();
        self.slept = false;
        while let Some(index) = self.wheel.advance(self.now) {
            let Some(token) = self.slots.token_at(index) else { continue };
            match self.slots.get_mut(token) {
                Some(Slot::Listener(listener)) if !listener.deregistered => {
                    engine.receive(token, self);
                }
                Some(Slot::Stream(stream)) => match stream.phase {
                    Phase::Open => {
                        if mem::take(&mut stream.starved) {
                            engine.receive(token, self);
                        }
                        self.look_at_deadlines(engine, token);
                    }
                    Phase::Deregistered => {}
                    #[cfg(feature = "zerocopy")]
                    Phase::Leaving => self.deregister(engine, token),
                    // The FIN has gone out since the turn before.
                    Phase::Sending if stream.shared.is_sent() && !stream.has_pinned() => {
                        self.go_on_closing(engine, token);
                    }
                    Phase::Sending => {
                        self.stats.forced += 1;
                        // A writer may still wait for what is not going to be sent.
                        let wakers = stream.shared.fail(libc::ETIMEDOUT);
                        self.deregister(engine, token);
                        wakers.wake();
                    }
                    Phase::Receiving => {
                        self.stats.close_timeouts += 1;
                        self.deregister(engine, token);
                    }
                },
                _ => {}
            }
        }
    }

    /// When [`begin_turn`](Driver::begin_turn) is due next.
    pub fn next_expiry(&self) -> Option<Tick> {
        self.wheel.next_expiry()
    }

    /// Ends a turn: blocks that nobody refers to any more go to the next connection, and connections that were
    /// closed and have come to their end are given back.
    pub fn end_turn<P: Poll>(&mut self, engine: &mut P) {
        let mut touched = mem::take(&mut self.touched);
        for token in touched.drain(..) {
            let Some(stream) = self.stream(token) else { continue };
            stream.touched = false;
            stream.give_back();
            if stream.phase != Phase::Open {
                self.go_on_closing(engine, token);
            }
        }
        self.touched = touched;
        LocalBlocks::end_turn();
        if mem::take(&mut self.unawaited) {
            self.slept_at = self.mailbox.clock().now();
        }
        self.slept = true;
    }

    /// The connections accepted since the last call.
    pub fn take_accepted(&mut self, into: &mut Vec<Accepted>) {
        into.append(&mut self.accepted);
    }

    /// Connections, without those that are closed and wait for their end. O(1).
    pub fn open_connections(&self) -> usize {
        self.open
    }

    /// Slots in use, by connections in whatever phase and by listeners.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is neither a connection nor a listener.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Tells every connection of a group, and those that are opened in it later, that it is to end between two
    /// requests, when what has arrived by now is handled.
    pub fn drain<P: Poll>(&mut self, engine: &mut P, group: Group) {
        if self.draining(group).is_some() {
            return;
        }
        let mut left = 0;
        for token in self.slots.tokens().collect::<Vec<_>>() {
            if self.stream(token).is_some_and(|stream| stream.group == group) {
                left += 1;
                self.drain_one(engine, token);
            }
        }
        self.draining.push(Draining { group, left });
    }

    fn drain_one<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(stream) = self.stream(token) else { return };
        if stream.phase == Phase::Open {
            let unread = engine.unread_bytes(token);
            stream.shared.drain(unread).wake();
        }
    }

    /// Connections of a group that have not been released since [`drain`](Driver::drain).
    pub fn left(&self, group: Group) -> usize {
        let draining = self.draining.iter().find(|draining| draining.group == group);
        draining.map_or(0, |draining| draining.left)
    }

    /// Forgets that a group drains.
    pub fn end_drain(&mut self, group: Group) {
        self.draining.retain(|draining| draining.group != group);
    }

    /// Ends every connection of a group now, whatever they are doing. Returns how many that were open, or had something
    /// to send. The engine goes on releasing them in its next turns.
    pub fn abort_group<P: Poll>(&mut self, engine: &mut P, group: Group) -> usize {
        self.abort_if(engine, |stream| stream.group == group)
    }

    /// Ends every connection and listener now; see [`abort_group`](Driver::abort_group).
    pub fn abort_all<P: Poll>(&mut self, engine: &mut P) -> usize {
        for token in self.slots.tokens().collect::<Vec<_>>() {
            self.unlisten(engine, token);
        }
        self.abort_if(engine, |_| true)
    }

    fn abort_if<P: Poll>(&mut self, engine: &mut P, chosen: impl Fn(&Stream) -> bool) -> usize {
        let mut forced = 0;
        for token in self.slots.tokens().collect::<Vec<_>>() {
            let Some(stream) = self.stream(token).filter(|stream| chosen(stream)) else { continue };
            if matches!(stream.phase, Phase::Open | Phase::Sending) {
                forced += 1;
                stream.shared.fail(libc::ECONNABORTED).wake_at_the_end();
            }
            self.deregister(engine, token);
        }
        self.stats.forced += forced as u64;
        forced
    }

    fn draining(&mut self, group: Group) -> Option<&mut Draining> {
        self.draining.iter_mut().find(|draining| draining.group == group)
    }

    fn receive<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let receives = |stream: &mut Stream| match stream.phase {
            Phase::Open => !stream.paused,
            Phase::Sending | Phase::Receiving => true,
            #[cfg(feature = "zerocopy")]
            Phase::Leaving => false,
            Phase::Deregistered => false,
        };
        if self.stream(token).is_some_and(receives) {
            engine.receive(token, self);
        }
    }

    /// Timers that are set.
    pub fn timers(&self) -> usize {
        self.wheel.len()
    }

    /// What was seen so far.
    pub fn stats(&self) -> DriverStats {
        #[cfg(not(feature = "zerocopy"))]
        return self.stats;
        #[cfg(feature = "zerocopy")]
        DriverStats { zerocopy_pinned_bytes: self.zero_copies.pinned_bytes(), ..self.stats }
    }

    /// Ends the waits of an open connection that are due, or the connection if it was idle for too long, and sets
    /// the timer for the next.
    fn look_at_deadlines<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let now = self.now;
        let Some(stream) = self.stream(token).filter(|stream| stream.phase == Phase::Open) else {
            return;
        };
        let expired = stream.shared.expire(now, stream.active);
        let retry = if stream.starved { now + NO_MEMORY_RETRY_MS } else { NEVER };
        let wakers = if expired.idle { Some(stream.shared.fail(libc::ETIMEDOUT)) } else { None };
        expired.wakers.wake();
        match (expired.next.min(retry), wakers) {
            (_, Some(wakers)) => {
                self.stats.idle_timeouts += 1;
                self.deregister(engine, token);
                wakers.wake();
            }
            (NEVER, None) => self.wheel.clear(token.index()),
            (next, None) => self.wheel.set(token.index(), next),
        }
    }

    /// Ends a connection with a reset.
    fn abort<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(stream) = self.stream(token) else { return };
        let wakers = stream.shared.fail(libc::ECONNABORTED);
        self.deregister_as(engine, token, Deregister::Abort);
        wakers.wake();
    }

    fn close<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return };
        match mem::replace(&mut stream.phase, Phase::Sending) {
            Phase::Open => self.open -= 1,
            // Whoever asked for the socket has thought better of it.
            #[cfg(feature = "zerocopy")]
            Phase::Leaving => {}
            phase => {
                stream.phase = phase;
                return;
            }
        }
        let patience = stream.shared.write_timeout().unwrap_or(CLOSE_SEND_MS);
        self.wheel.set(token.index(), self.now.saturating_add(patience));
        // For the FIN, and to find out that there is nothing else.
        engine.send(token, self);
        self.go_on_closing(engine, token);
        // Above the watermark the engine had stopped; now what comes is dropped, and the peer's FIN is waited for.
        if self.slots.get(token).is_some() {
            engine.receive(token, self);
        }
    }

    /// Takes a closed connection to its next phase, if it has come to the end of one.
    fn go_on_closing<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return };
        if stream.phase == Phase::Sending && stream.shared.is_sent() && !stream.has_pinned() {
            stream.phase = Phase::Receiving;
            self.wheel.set(token.index(), self.now + CLOSE_RECEIVE_MS);
        }
        match stream.phase {
            Phase::Receiving if stream.shared.peer_is_done() => self.deregister(engine, token),
            #[cfg(feature = "zerocopy")]
            Phase::Leaving if !stream.has_pinned() => self.deregister(engine, token),
            _ => {}
        }
    }

    /// Gives the socket to whoever asked for it.
    fn detach<P: Poll>(&mut self, engine: &mut P, token: Token) {
        #[cfg(feature = "zerocopy")]
        if self.waits_for_notices(token) {
            return;
        }
        self.deregister_as(engine, token, Deregister::Leave);
    }

    fn deregister<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(stream) = self.stream(token) else { return };
        let how = match stream.phase {
            // The kernel may never come to the end of what the peer does not take.
            Phase::Open | Phase::Sending | Phase::Receiving if stream.has_pinned() => {
                Deregister::Abort
            }
            // It has users, who hold on to its socket.
            Phase::Open => Deregister::Shutdown,
            #[cfg(feature = "zerocopy")]
            Phase::Leaving => Deregister::Leave,
            Phase::Sending | Phase::Receiving | Phase::Deregistered => Deregister::Close,
        };
        self.deregister_as(engine, token, how);
    }

    fn deregister_as<P: Poll>(&mut self, engine: &mut P, token: Token, how: Deregister) {
        let Some(stream) = self.stream(token) else { return };
        match mem::replace(&mut stream.phase, Phase::Deregistered) {
            Phase::Open => self.open -= 1,
            Phase::Deregistered => return,
            _ => {}
        }
        self.wheel.clear(token.index());
        engine.deregister(token, how, self);
    }

    /// A send was over at this time.
    #[inline]
    fn acknowledge(&mut self, token: Token, result: io::Result<usize>, at: Tick) -> Next {
        let Some(stream) = self.stream(token) else { return Next::Stop };
        stream.in_flight = false;
        let next = match result {
            Ok(n) => {
                stream.active = stream.active.max(at);
                stream.sending.advance(n);
                let (writer, next) = stream.shared.sent(n, &mut stream.sending);
                wake(writer);
                next
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Next::More,
            Err(error) => {
                stream.fail_sending(&error).wake();
                Next::Stop
            }
        };
        if stream.phase != Phase::Open {
            self.touch(token);
        }
        next
    }

    /// When what the engine reports has happened: not before it slept.
    fn now(&mut self) -> Tick {
        if mem::take(&mut self.slept) {
            self.now = self.mailbox.clock().now();
        }
        self.now
    }

    /// Has the connection looked at when the turn ends.
    fn touch(&mut self, token: Token) {
        if let Some(Slot::Stream(stream)) = self.slots.get_mut(token) {
            if !mem::replace(&mut stream.touched, true) {
                self.touched.push(token);
            }
        }
    }

    fn stream(&mut self, token: Token) -> Option<&mut Stream> {
        match self.slots.get_mut(token) {
            Some(Slot::Stream(stream)) => Some(stream),
            _ => None,
        }
    }
}

// SAFETY: the vectors of inputs lie in the stream's intake and those of outputs in its `sending`. Neither is changed
// while it is lent, except that `sending` grows at its end, which moves no bytes; and a slot is removed only when the
// engine has released it. If the driver is dropped earlier, `Stream::drop` leaks what is lent.
unsafe impl Operators for Driver {
    fn inputs(&mut self, token: Token, lease: Lease, vectors: &mut [iovec; 2]) -> Inputs {
        let Some(stream) = self.stream(token) else { return Inputs::Stop };
        let stops = match stream.phase {
            Phase::Open => stream.paused,
            // Even if it was paused: for the peer's FIN.
            Phase::Sending | Phase::Receiving => false,
            #[cfg(feature = "zerocopy")]
            Phase::Leaving => true,
            Phase::Deregistered => true,
        };
        if stops {
            return Inputs::Stop;
        }
        if lease == Lease::Brief {
            if let Some(lent) = stream.share_block() {
                vectors[0] = lent;
                return Inputs::Vectors(1);
            }
        }
        let open = stream.phase == Phase::Open;
        match stream.intake.lend(&mut LocalBlocks, vectors) {
            Ok(count) => {
                stream.receiving = Receiving::Own;
                Inputs::Vectors(count)
            }
            Err(_) => {
                stream.starved = true;
                let retry = self.now + NO_MEMORY_RETRY_MS;
                let set = self.wheel.deadline(token.index());
                // The timer of a closed connection ends it, and is left alone.
                if open && set.is_none_or(|deadline| deadline > retry) {
                    self.wheel.set(token.index(), retry);
                }
                Inputs::Stop
            }
        }
    }

    unsafe fn input_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        let now = self.now();
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return Next::Stop };
        let shared_block = mem::replace(&mut stream.receiving, Receiving::No) == Receiving::Shared;
        // It has a block to be given back, or comes to its next phase.
        let looked_at = !shared_block || stream.phase != Phase::Open;
        if looked_at && !mem::replace(&mut stream.touched, true) {
            self.touched.push(token);
        }
        let Stream { shared, intake, .. } = stream;
        let next = match result {
            Ok(n) if n > 0 => {
                stream.active = now;
                let (reader, next) = shared.deliver(|inbox, _| {
                    if shared_block {
                        // SAFETY: promised by the engine, which has asked for nothing else since.
                        unsafe { LocalBlocks::commit(n, inbox) };
                        intake.saw(n, inbox.len());
                    } else {
                        // SAFETY: promised by the engine.
                        unsafe { intake.commit(n, inbox) };
                    }
                });
                wake(reader);
                next
            }
            Ok(_) => {
                shared.end_input().wake();
                Next::Stop
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Next::More,
            Err(error) => {
                shared.fail(errno(&error)).wake();
                Next::Stop
            }
        };
        if let Some(unused) = intake.take_unused() {
            LocalBlocks::put(unused);
        }
        next
    }

    fn donate(&mut self, token: Token, slice: Slice) -> Next {
        let now = self.now();
        let Some(stream) = self.stream(token) else { return Next::Stop };
        stream.active = now;
        let paused = stream.paused;
        let Stream { shared, intake, .. } = stream;
        let mut touched = false;
        let (reader, next) = shared.deliver(|inbox, lags| {
            // Nobody knows for how long these would keep a block that is many times their size.
            let copies = lags && slice.len() <= LAGGING_COPY_BYTES;
            if copies && intake.make_room(&mut LocalBlocks, slice.len()) {
                intake.copy_in(&slice, inbox);
            } else {
                inbox.push(slice);
            }
            touched = intake.tail().is_some();
        });
        wake(reader);
        if touched {
            self.touch(token);
        }
        if paused { Next::Stop } else { next }
    }

    fn copy_in(&mut self, token: Token, bytes: &[u8]) -> Option<Next> {
        let now = self.now();
        let Some(stream) = self.stream(token) else { return Some(Next::Stop) };
        stream.active = now;
        let paused = stream.paused;
        let Stream { shared, intake, .. } = stream;
        let (mut copied, mut touched) = (true, false);
        let (reader, next) = shared.deliver(|inbox, lags| {
            if lags {
                // The pieces of a message go side by side, rather than each into a block with those of others.
                copied = intake.make_room(&mut LocalBlocks, bytes.len());
                if copied {
                    intake.copy_in(bytes, inbox);
                }
            } else {
                copied = LocalBlocks::copy_in(bytes, inbox);
            }
            touched = intake.tail().is_some();
        });
        wake(reader);
        if touched {
            self.touch(token);
        }
        copied.then_some(if paused { Next::Stop } else { next })
    }

    fn outputs(&mut self, token: Token, vectors: &mut [iovec; SEND_VECTORS_MAX]) -> Outputs {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else {
            return Outputs::Nothing;
        };
        if stream.phase == Phase::Deregistered {
            return Outputs::Nothing;
        }
        let waits = match stream.shared.take_output(&mut stream.sending) {
            Ok(waits) => waits,
            Err(done) => {
                if done == Outputs::Finish {
                    // No acknowledgement follows, and a closed connection has come to its next phase.
                    self.touch(token);
                }
                return done;
            }
        };
        #[cfg(feature = "zerocopy")]
        let (count, bytes, flags) = self.zero_copies.fill_vectors(stream, vectors);
        #[cfg(not(feature = "zerocopy"))]
        let ((count, bytes), flags) = (stream.sending.fill_vectors(vectors), 0);
        stream.in_flight = true;
        let awaited = waits || bytes < stream.sending.len();
        self.unawaited |= !awaited;
        Outputs::Vectors { count, bytes, flags, awaited }
    }

    #[cfg(feature = "zerocopy")]
    fn zerocopy_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        self.acknowledge_zero_copy(token, result)
    }

    #[cfg(feature = "zerocopy")]
    fn zerocopy_notice(&mut self, token: Token, first: u32, last: u32, copied: bool) {
        self.release_zero_copy(token, first, last, copied);
    }

    fn output_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        let now = self.now();
        self.acknowledge(token, result, now)
    }

    fn late_output_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        self.acknowledge(token, result, self.slept_at)
    }

    fn connected(&mut self, token: Token, result: io::Result<()>) {
        let Some(stream) = self.stream(token) else { return };
        let wakers = match result {
            Ok(()) => stream.shared.connected(),
            Err(error) => stream.shared.fail(errno(&error)),
        };
        wakers.wake();
    }

    fn accepted(&mut self, token: Token, result: io::Result<OwnedFd>) -> Next {
        let Some(Slot::Listener(listener)) = self.slots.get_mut(token) else { return Next::Stop };
        match result {
            Ok(socket) => {
                listener.retry_ms = ACCEPT_RETRY_MS.0;
                let next = if listener.paused { Next::Stop } else { Next::More };
                self.accepted.push(Accepted { listener: token, socket });
                next
            }
            // accept(2) hands on the errors of the connection that was to be accepted: the next one may be fine.
            Err(error) if is_of_the_network(&error) || listener.deregistered => {
                self.stats.accept_aborts += 1;
                Next::More
            }
            // The process or the machine has run out of something that will come back, or accepting is forbidden:
            // asking again at once would spin.
            Err(_) => {
                let retry = listener.retry_ms;
                listener.retry_ms = (retry * 2).min(ACCEPT_RETRY_MS.1);
                self.wheel.set(token.index(), self.now + retry);
                self.stats.accept_backoffs += 1;
                Next::Stop
            }
        }
    }

    fn released(&mut self, token: Token) {
        self.wheel.clear(token.index());
        if let Some(Slot::Stream(mut stream)) = self.slots.remove(token) {
            stream.receiving = Receiving::No;
            stream.in_flight = false;
            stream.released = true;
            #[cfg(feature = "zerocopy")]
            self.zero_copies.adopt(token, &mut stream);
            self.stats.closed += 1;
            if let Some(draining) = self.draining(stream.group) {
                draining.left -= 1;
            }
            stream.shared.released().wake_at_the_end();
        }
    }
}

/// Whether an error is the peer's or the network's, and no fault of this process or machine. The list is that of
/// accept(2), and what breaks a connection that is established.
fn is_of_the_network(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EPIPE
                | libc::ETIMEDOUT
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
        )
    )
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Listening {
    fn new(socket: OwnedFd) -> Listening {
        Listening { socket, retry_ms: ACCEPT_RETRY_MS.0, paused: false, deregistered: false }
    }
}

impl Stream {
    fn new(shared: Arc<Shared>, group: Group, now: Tick) -> Stream {
        Stream {
            shared,
            group,
            intake: Intake::default(),
            sending: Chain::new(),
            receiving: Receiving::No,
            in_flight: false,
            #[cfg(feature = "zerocopy")]
            zero_copy: None,
            touched: false,
            starved: false,
            paused: false,
            phase: Phase::Open,
            released: false,
            active: now,
        }
    }

    /// Room for a small message in the block that connections share; none if a larger one is expected, or one of which a
    /// part has come: it would keep the block for longer than others need it.
    fn share_block(&mut self) -> Option<iovec> {
        if !self.intake.expects_little() || self.shared.lags() {
            return None;
        }
        let lent = LocalBlocks::lend()?;
        self.intake.lends(lent.iov_len);
        self.receiving = Receiving::Shared;
        Some(lent)
    }

    /// Whether the kernel still reads from the memory of what it has taken to send.
    #[cfg(not(feature = "zerocopy"))]
    fn has_pinned(&self) -> bool {
        false
    }

    /// Gives up the block that was received into, unless the kernel holds it, or bytes in it wait for their reader or
    /// for the rest of a message: what comes next shall continue in the same block.
    fn give_back(&mut self) {
        if self.receiving == Receiving::Own {
            return;
        }
        let Some(tail) = self.intake.tail_mut().take() else { return };
        if tail.is_shared() && self.shared.lags() {
            *self.intake.tail_mut() = Some(tail);
        } else {
            LocalBlocks::put(tail);
        }
    }

    /// A send has failed, and with it what else there was to send.
    fn fail_sending(&mut self, error: &io::Error) -> Wakers {
        self.sending = Chain::new();
        if is_of_the_network(error) {
            // Receiving comes to its end by itself, behind the bytes that have arrived.
            self.shared.fail_output(errno(error))
        } else {
            self.shared.fail(errno(error))
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.receiving == Receiving::Own {
            mem::forget(mem::take(&mut self.intake));
        }
        if self.in_flight {
            mem::forget(mem::take(&mut self.sending));
        }
        if !self.released {
            self.shared.abandoned().wake_at_the_end();
        }
        // SAFETY: once, and last: the engine has released the socket, or is gone itself.
        unsafe { self.shared.let_go() };
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("slots", &self.slots.len())
            .field("timers", &self.wheel.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").field("socket", &self.socket).finish_non_exhaustive()
    }
}
