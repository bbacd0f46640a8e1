//! The seam between the connections and an engine.
//!
//! An engine implements [`Poll`]; the connections implement [`Operators`]. The engine asks for vectors, does the
//! I/O, and acknowledges. When it asks is its own affair: epoll asks, calls `readv` and acknowledges back to back;
//! io_uring asks when it submits and acknowledges at the completion.

use std::fmt;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use libc::iovec;

use crate::memory::Slice;
use crate::token::Token;

/// The most vectors that one send is given.
pub const SEND_VECTORS_MAX: usize = 64;

/// What is behind a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connected stream socket.
    Stream,
    /// A listening socket.
    Listener,
    /// A stream socket whose connect(2) is under way. When that has succeeded it is a [`Stream`](Kind::Stream).
    Connecting,
    /// Any descriptor that can be polled: nothing is received from it or sent to it, but [`Operators::ready`] tells when that may be
    /// possible.
    Watched,
    /// A socket for datagrams: as what is [watched](Kind::Watched), but of room it is told from [`Poll::watch_room`] on, until nobody had
    /// waited for it. The kernel would tell of it with each datagram that leaves.
    Datagrams,
}

/// A direction in which something can be done with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It can be read, or accepted from.
    Read,
    /// It can be written.
    Write,
}

/// In which directions a descriptor may be ready. What has ended or is broken is ready in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// To be read.
    pub readable: bool,
    /// To be written.
    pub writable: bool,
}

/// How a registration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deregister {
    /// Nobody uses the socket any more, and it is closed when it is released.
    Close,
    /// Its users may hold on to the socket: both directions are shut down under them.
    Shutdown,
    /// Both directions are ended at once, on TCP with a reset.
    Abort,
    /// The socket lives on elsewhere and is left as it is: a listener may be shared.
    Leave,
}

/// An engine: it watches descriptors, and moves bytes between them and the operators.
///
/// All methods are called on one thread, the poller's.
pub trait Poll {
    /// Starts watching. A stream is received from at once, a listener accepted from; a stream is sent to when
    /// [`send`](Poll::send) says that there is something.
    ///
    /// # Safety
    /// - The descriptor is open, is what `kind` says, and stays open until the engine has called
    ///   [`Operators::released`] for the token.
    /// - No other registration that has not been released has this token.
    /// - Until then, all calls of this engine are given these operators.
    ///
    /// # Errors
    /// What the kernel says; then the token is not registered.
    unsafe fn register<O: Operators>(
        &mut self,
        token: Token,
        fd: RawFd,
        kind: Kind,
        operators: &mut O,
    ) -> io::Result<()>;

    /// Receives, or accepts, again after the operators had said stop.
    fn receive<O: Operators>(&mut self, token: Token, operators: &mut O);

    /// There is something to send, or somebody waits for what is being sent. At most one send is in flight per stream;
    /// after a call meanwhile its acknowledgement is awaited, at which the engine asks for more.
    fn send<O: Operators>(&mut self, token: Token, operators: &mut O);

    /// Somebody waits for room in a socket for [datagrams](Kind::Datagrams): [`Operators::ready`] tells if there is some, and of each change
    /// from then on, until that says stop.
    fn watch_room(&mut self, token: Token);

    /// Stops watching. [`Operators::released`] follows when the kernel holds nothing of it any more, in this call
    /// or in a later [`wait`](Poll::wait). Bytes that arrive meanwhile are still acknowledged.
    fn deregister<O: Operators>(&mut self, token: Token, how: Deregister, operators: &mut O);

    /// One turn: waits until something happens or the time is over, and serves a bounded number of events.
    ///
    /// # Errors
    /// The engine itself is broken; it cannot go on. Interruptions and errors of single descriptors are not
    /// reported here.
    fn wait<O: Operators>(
        &mut self,
        timeout: Option<Duration>,
        operators: &mut O,
    ) -> io::Result<()>;

    /// What has happened to a stream that the operators were not told of yet, wherever it is known: in the socket, in
    /// buffers or completions of the engine. What is reported is told in one of the next turns, unless the operators had
    /// said stop. Asked when a deadline has passed or a server shuts down, and not on a hot path.
    fn pending(&mut self, token: Token) -> Pending;

    /// Whether the next wait may tell, without waiting, of something that had happened before the last one returned. Asked when
    /// timers are late.
    fn has_more(&mut self) -> bool;

    /// What wakes [`wait`](Poll::wait) from another thread. One call wakes at least one wait, the present or the
    /// next.
    fn waker(&self) -> Arc<dyn Notify>;

    /// What this engine does on this kernel.
    fn capabilities(&self) -> Capabilities;

    /// What it has done.
    fn stats(&self) -> EngineStats;
}

/// Wakes a waiting engine from another thread.
pub trait Notify: Send + Sync + fmt::Debug {
    /// Makes the engine's wait return.
    fn notify(&self);
}

/// What an engine does on the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// `"epoll"` or `"io_uring"`.
    pub engine: &'static str,
    /// What is used of the engine, in a few words.
    pub tier: String,
    /// Why nothing can be sent without a copy, if nothing can.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_refusal: Option<String>,
}

impl Capabilities {
    /// Capabilities of an engine.
    pub fn new(engine: &'static str, tier: impl Into<String>) -> Capabilities {
        Capabilities {
            engine,
            tier: tier.into(),
            #[cfg(feature = "zerocopy")]
            zerocopy_refusal: None,
        }
    }

    /// With the reason why nothing can be sent without a copy, if nothing can.
    #[cfg(feature = "zerocopy")]
    pub fn with_zerocopy_refusal(self, zerocopy_refusal: Option<String>) -> Capabilities {
        Capabilities { zerocopy_refusal, ..self }
    }
}

/// What an engine has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Waits for events: `epoll_wait`, `io_uring_enter`.
    pub waits: u64,
    /// All system calls of the engine, waits included.
    pub syscalls: u64,
    /// Receives that the kernel completed, with or without bytes.
    pub receives: u64,
    /// Sends that the kernel completed.
    pub sends: u64,
    /// Sends that the kernel took in part.
    pub short_sends: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Wake-ups from other threads.
    pub wakeups: u64,
    /// Events for registrations that were gone.
    pub stale_events: u64,
    /// Waits after which the kernel still kept completions for which their queue had no room; 0 on epoll.
    pub completion_overflows: u64,
    /// Receives that found no buffer of the engine's own, and were taken up again; 0 on epoll.
    pub buffer_shortages: u64,
}

/// What has happened to a stream and was not told yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Bytes that have arrived.
    pub bytes: usize,
    /// The peer has ended, or the connection is broken: behind those bytes.
    pub ended: bool,
    /// The kernel would take bytes to send; a connect that was under way has ended.
    pub room: bool,
}

/// For how long an engine uses what it is lent for a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Until the acknowledgement, before which it asks for nothing else.
    UntilAck,
    /// While the kernel holds it, until the acknowledgement, whenever that is.
    InFlight,
}

/// Where a receive goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// This many of the vectors are set, 1 or 2.
    Vectors(usize),
    /// Receive nothing until [`Poll::receive`].
    Stop,
}

/// What there is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// This many of the vectors are set, and describe this many bytes.
    Vectors {
        /// Vectors set, at least 1.
        count: usize,
        /// Their bytes, at least 1.
        bytes: usize,
        /// Flags for send(2), beside the engine's own: `MSG_MORE`, `MSG_ZEROCOPY`.
        flags: i32,
        /// Something waits for the acknowledgement. If not, and [`Poll::send`] does not follow, an engine may keep one back
        /// that it has at once, until the next thing happens, and for 10 milliseconds at most.
        awaited: bool,
    },
    /// Everything has been sent, and the sending direction is to be shut down.
    Finish,
    /// Nothing until [`Poll::send`].
    Nothing,
}

/// Whether an engine goes on after an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask again.
    More,
    /// All that was given is sent, and something else has come meanwhile, of which [`Poll::send`] tells as well. An engine that has
    /// heard of it while it was sending asks again.
    Fresh,
    /// Nothing more for now.
    Stop,
}

/// The connections, as an engine sees them. Netpoll calls it the FDOperator.
///
/// # Safety
/// - Vectors that were given out stay valid, and for inputs are written by nobody else, until they are
///   acknowledged, even if the connection is closed meanwhile.
/// - No reference to the bytes of an input vector exists while it is lent.
pub unsafe trait Operators {
    /// The engine's wait has returned, with or without events: whoever wakes the poller from now on need not end a wait.
    fn awake(&mut self) {}

    /// Whether something has come up since they last said for how long a wait may sleep. Asked by an engine that asks for something, or
    /// allocates, in a wait before it sleeps: it does not sleep then.
    fn is_due_sooner(&self) -> bool {
        false
    }

    /// Whether anything is to be received: for an engine that has memory of its own for it, before it begins.
    fn receives(&mut self, token: Token) -> bool {
        let _ = token;
        true
    }

    /// Where to put what comes next.
    fn inputs(&mut self, token: Token, lease: Lease, vectors: &mut [iovec; 2]) -> Inputs;

    /// The receive for which vectors were last given is over: with so many bytes, with 0 for the end of the
    /// stream, or with an error. `WouldBlock` gives the vectors back and means nothing else.
    ///
    /// # Safety
    /// The first `n` bytes of the vectors were written. If they were lent [until now](Lease::UntilAck) only, nothing
    /// else was asked for since.
    unsafe fn input_ack(&mut self, token: Token, result: io::Result<usize>) -> Next;

    /// Bytes that came in a buffer of the engine's own, which becomes the connection's. Not while vectors are lent for
    /// a receive: bytes have one way in at a time.
    fn donate(&mut self, token: Token, slice: Slice) -> Next;

    /// Bytes that came in a buffer of the engine's own, and are few enough that a copy is cheaper than to keep the
    /// buffer for them. None if there is no memory for the copy; then nothing was taken. Not while vectors are lent.
    fn copy_in(&mut self, token: Token, bytes: &[u8]) -> Option<Next>;

    /// What to send next.
    fn outputs(&mut self, token: Token, vectors: &mut [iovec; SEND_VECTORS_MAX]) -> Outputs;

    /// The send for which vectors were last given is over: so many bytes were taken, or an error. `WouldBlock`
    /// gives the vectors back, and the engine asks again when there is room.
    fn output_ack(&mut self, token: Token, result: io::Result<usize>) -> Next;

    /// As [`output_ack`](Operators::output_ack), if the flags had `MSG_ZEROCOPY`. The kernel goes on reading the bytes it
    /// has taken, until the engine calls [`zerocopy_notice`](Operators::zerocopy_notice). Never called for operators whose
    /// flags never have it.
    fn zerocopy_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        self.output_ack(token, result)
    }

    /// The kernel reads no more from the memory of some sends: those from `first` to `last`, both included, among the
    /// successful sends with `MSG_ZEROCOPY` of this registration, counted from 0 and wrapping. `copied`: it has copied their
    /// bytes all the same.
    /// May come after [`released`](Operators::released).
    fn zerocopy_notice(&mut self, token: Token, first: u32, last: u32, copied: bool) {
        let _ = (token, first, last, copied);
    }

    /// A connect that was under way has succeeded, and the stream is received from, or it has failed.
    fn connected(&mut self, token: Token, result: io::Result<()>);

    /// A connection was accepted, or it could not be.
    fn accepted(&mut self, token: Token, result: io::Result<OwnedFd>) -> Next;

    /// A descriptor that is [watched](Kind::Watched), or a socket for [datagrams](Kind::Datagrams), may have become ready. Told at least once
    /// after each change, and once after the registration if it is ready then. Stop: nobody had waited for room.
    fn ready(&mut self, token: Token, ready: Ready) -> Next;

    /// The registration is over; the descriptor may be closed, and the memory that was lent be used for something else.
    ///
    /// # Safety
    /// The kernel holds nothing of this registration any more, but for the memory of sends without a copy, and the engine
    /// uses neither the descriptor nor any vector of it again.
    unsafe fn released(&mut self, token: Token);
}
