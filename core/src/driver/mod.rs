//! All connections and listeners of one poller: what the engine calls, and what its thread does between two turns.
//!
//! The driver owns the memory that is lent to the kernel. A slot is freed when the engine says that the kernel holds
//! nothing of it any more, and not before; if the driver itself is dropped earlier, memory that is still lent is
//! leaked rather than freed.

mod budget;
mod closing;
mod deadlines;
mod draining;
mod group;
mod lending;
mod lent;
mod listening;
mod memory;
mod operators;
#[cfg(feature = "zerocopy")]
mod pinned;
mod slot;
mod stats;
mod stream;
mod watching;
#[cfg(feature = "zerocopy")]
mod zerocopy;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

pub use budget::WhenFull;
pub use group::Group;
pub use slot::Accepted;
pub use stats::DriverStats;

use crate::command::Command;
use crate::connection::{self, Limits, Reader, Todo, Writer};
use crate::mailbox::Mailbox;
use crate::poll::{Kind, Poll};
use crate::thread::Blocks;
use crate::timer::Wheel;
use crate::timers;
use crate::token::{Token, TokenSlab};
use crate::trace;
use budget::Memory;
use group::{Draining, Open};
use slot::Slot;
use stream::Stream;

/// The connections and listeners of one poller.
pub struct Driver {
    slots: TokenSlab<Slot>,
    wheel: Wheel,
    /// Turns for which the timers of users have waited that are due.
    timers_held: u32,
    /// The poller was about to sleep.
    sleeps: bool,
    mailbox: Arc<Mailbox>,
    /// Connections that have a block from this turn, or may have come to their next phase.
    touched: Vec<Token>,
    accepted: Vec<Accepted>,
    open: Open,
    draining: Draining,
    #[cfg(feature = "zerocopy")]
    pinned: pinned::Pinned,
    memory: Memory,
    /// What peers had not taken when their connections were to end for being idle.
    untaken: HashMap<Token, (usize, usize)>,
    stats: DriverStats,
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
            timers_held: 0,
            sleeps: false,
            mailbox,
            touched: Vec::new(),
            accepted: Vec::new(),
            open: Open::default(),
            draining: Draining::default(),
            #[cfg(feature = "zerocopy")]
            pinned: pinned::Pinned::default(),
            memory: Memory::default(),
            untaken: HashMap::new(),
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
        self.register(engine, socket, limits, group, Kind::Stream, false)
    }

    /// As [`open`](Driver::open), of which nothing is received before it is [resumed](crate::Control::resume).
    ///
    /// # Errors
    /// As for `open`.
    pub fn open_paused<P: Poll>(
        &mut self,
        engine: &mut P,
        socket: Option<OwnedFd>,
        limits: Limits,
        group: Group,
    ) -> io::Result<(Reader, Writer)> {
        self.register(engine, socket, limits, group, Kind::Stream, true)
    }

    /// Registers a socket whose connect(2) is under way and gives its two halves;
    /// [`WriterSeam::poll_connected`](crate::seam::WriterSeam::poll_connected) says when it has succeeded.
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
        self.register(engine, socket, limits, group, Kind::Connecting, false)
    }

    fn register<P: Poll>(
        &mut self,
        engine: &mut P,
        socket: Option<OwnedFd>,
        limits: Limits,
        group: Group,
        kind: Kind,
        paused: bool,
    ) -> io::Result<(Reader, Writer)> {
        let fd = socket.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let mut halves = None;
        let serial = self.slots.insertions();
        let token = self.slots.insert_with(|token| {
            let connecting = kind == Kind::Connecting;
            let (shared, reader, writer) =
                connection::pair(socket, self.mailbox.clone(), token, serial, &limits, connecting);
            if paused {
                reader.control().pause();
            }
            halves = Some((reader, writer));
            Slot::Stream(Stream::new(shared, group))
        });
        // SAFETY: the slot holds on to the socket, and is freed when the engine releases it; its token is nobody else's.
        if let Err(error) = unsafe { engine.register(token, fd, kind, self) } {
            self.slots.remove(token);
            return Err(error);
        }
        self.stats.connections += 1;
        self.open.one_more(group);
        if self.draining.has(group) {
            self.draining.one_more(group);
            self.drain_one(engine, token);
        }
        halves.ok_or_else(|| io::ErrorKind::Other.into())
    }

    /// Does what a connection asked for.
    #[inline]
    pub fn apply<P: Poll>(&mut self, engine: &mut P, command: Command) {
        match command {
            Command::Send(token) | Command::SendNow(token) => engine.send(token, self),
            Command::Look(token) => self.look(engine, token),
            Command::Forget(timer) => timers::forget(timer),
        }
    }

    fn look<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(stream) = self.stream(token) else { return };
        let todo = stream.shared.take_todo();
        if let Some(todo) = self.postpone_todo(engine, token, todo) {
            self.perform(engine, token, todo);
        }
    }

    fn perform<P: Poll>(&mut self, engine: &mut P, token: Token, todo: Todo) {
        if todo.has(Todo::ABORT) {
            return self.deregister(engine, token, connection::Reason::Aborted);
        }
        if todo.has(Todo::DETACH) {
            self.detach(engine, token);
        }
        if todo.has(Todo::CLOSE) {
            self.begin_closing(engine, token);
        }
        if todo.has(Todo::RECEIVE) {
            if let Some(stream) =
                self.stream(token).filter(|stream| stream.shared.receives().is_some())
            {
                trace::holds_peer_up(&*stream.shared, false);
                engine.receive(token, self);
            }
        }
        if todo.has(Todo::ARM) {
            self.look_at_deadlines(engine, token);
        }
    }

    /// Ends a turn: blocks that nobody refers to any more go to the next connection, and connections that were
    /// closed and have come to their end are given back.
    pub fn end_turn<P: Poll>(&mut self, engine: &mut P) {
        let mut touched = mem::take(&mut self.touched);
        for token in touched.drain(..) {
            let Some(stream) = self.stream(token) else { continue };
            stream.touched = false;
            stream.give_back();
            let (closes, is_lent) = (stream.due != 0, stream.lent.is_some());
            if is_lent {
                self.go_on_lending(engine, token);
            }
            if closes {
                self.go_on_closing(engine, token);
            }
        }
        touched.append(&mut self.touched);
        self.touched = touched;
        Blocks::end_turn();
    }

    /// Connections, without those that are closed and wait for their end. O(1).
    pub fn open_connections(&self) -> usize {
        self.open.all
    }

    /// Those of them that are in the default group: no server owns them, so somebody else has them.
    pub fn kept(&self) -> usize {
        self.open.unowned
    }

    /// Slots in use, by connections in whatever phase and by listeners.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is neither a connection nor a listener.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Timers that are set.
    pub fn timers(&self) -> usize {
        self.wheel.len() + timers::count()
    }

    /// What was seen so far.
    pub fn stats(&self) -> DriverStats {
        let memory_stops = self.mailbox.stops() as u64;
        DriverStats {
            memory_stops,
            #[cfg(feature = "zerocopy")]
            zerocopy_pinned_bytes: self.pinned.bytes as u64,
            ..self.stats
        }
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

impl Drop for Driver {
    fn drop(&mut self) {
        self.count_out();
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
