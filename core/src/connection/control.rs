//! What can be done to a connection while somebody else reads and writes.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::effects::When;
use super::lifecycle::Limit;
use super::peer::Peer;
use super::requests::Requests;
use super::shared::Shared;
use super::watch::Watch;
use crate::token::Token;

/// A handle on a connection: to limit what it may wait for, to pause it, and to end it. From any thread, while others
/// read and write.
///
/// # Timeouts and deadlines
/// A *timeout* counts from the beginning of each wait; more than 49 days are none. A *deadline* is a point in time, and
/// goes for every wait until it is changed. The earlier of the two ends a wait with
/// [`TimedOut`](std::io::ErrorKind::TimedOut). The connection is still good then, nothing is lost, and the wait can be
/// taken up again. Bytes that have arrived are read even if the deadline has passed: a deadline ends waits, not calls
/// that need not wait.
///
/// A deadline in the past ends, at once, the wait that is under way. Setting a later one, or none, makes the
/// connection usable again. Resolution: one millisecond, rounded up.
///
/// A handle does not keep the connection open; when it is closed, calls do nothing.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

/// Names a callback, for [`Control::remove_callback`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallbackId(u64);

impl Control {
    pub(crate) fn new(shared: Arc<Shared>) -> Control {
        Control { shared }
    }

    /// How long each wait for bytes to arrive may take; none: for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.limit(Limit::ReadTimeout(timeout));
    }

    /// How long each wait of a flush may take, however much of it the peer takes meanwhile; none: for ever. A connection
    /// that is closed also gets so long to send what was flushed.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.limit(Limit::WriteTimeout(timeout));
    }

    /// Until when reads may wait; none: for ever.
    pub fn set_read_deadline(&self, deadline: Option<Instant>) {
        let deadline = deadline.map(|instant| self.shared.clock().tick_of(instant));
        self.limit(Limit::ReadDeadline(deadline));
    }

    /// Until when flushes may wait; none: for ever.
    pub fn set_write_deadline(&self, deadline: Option<Instant>) {
        let deadline = deadline.map(|instant| self.shared.clock().tick_of(instant));
        self.limit(Limit::WriteDeadline(deadline));
    }

    /// How long no byte may move in either direction, while the connection waits for its peer, before it is ended with
    /// [`TimedOut`](std::io::ErrorKind::TimedOut) for both directions; none: for ever. It waits for its peer in a read, and as
    /// long as the kernel has not taken what was flushed; what passes otherwise does not count.
    pub fn set_idle_timeout(&self, timeout: Option<Duration>) {
        self.limit(Limit::IdleTimeout(timeout));
    }

    /// Whether both directions can still be used, as far as this side knows.
    pub fn is_active(&self) -> bool {
        self.shared.life().is_active()
    }

    /// Receives nothing until [`resume`](Control::resume): the kernel's window then holds the peer back. What the
    /// kernel has received by then may still come, as at the watermark
    /// [`input_high_bytes`](crate::Limits::input_high_bytes). Whoever waits for more goes on waiting; timeouts and
    /// deadlines of the wait count, the idle timeout does not. The peer's end and errors of the connection are found out by
    /// sending only, or later.
    pub fn pause(&self) {
        self.shared.adjust(|life| life.pause(self.shared.clock()));
    }

    /// Receives again. Harmless if the connection was not paused.
    pub fn resume(&self) {
        self.shared.adjust(|life| life.resume(self.shared.clock()));
    }

    /// Has `callback` called once, as soon as it is found out that the connection ends: the peer has ended it, it broke, it was
    /// closed or aborted by this side, or taken away from its poller. At once if that was found out already, and then there is
    /// nothing to remove. For those who keep connections that nobody reads from, such as a pool of a client.
    ///
    /// It runs where the end is found out, mostly on the poller's thread, and must not block. The callback that
    /// was set last is called first. What had arrived before the end can still be read.
    pub fn on_close(&self, callback: impl FnOnce() + Send + 'static) -> Option<CallbackId> {
        self.shared.call_when(When::Closed, Box::new(callback)).map(CallbackId)
    }

    /// Has something called once, when its poller and its engine hold nothing of it any more; at once if that is so.
    #[doc(hidden)]
    pub fn on_release(&self, callback: impl FnOnce() + Send + 'static) {
        self.shared.call_when(When::Released, Box::new(callback));
    }

    /// Takes a callback back. False if it has been called, or is about to be.
    pub fn remove_callback(&self, callback: CallbackId) -> bool {
        self.shared.remove_callback(callback.0)
    }

    /// Waits until it is found out that the connection ends; see [`on_close`](Control::on_close).
    pub fn closed(&self) -> Watch {
        Watch::new(self.shared.clone(), When::Closed)
    }

    /// Waits until the server begins to shut down that the connection belongs to, or until both directions have ended: for whoever
    /// streams, or keeps connections alive, and is to come to an end then. A peer that has only sent its FIN may wait for a reply, and does
    /// not end the wait.
    pub fn draining(&self) -> Watch {
        Watch::new(self.shared.clone(), When::Draining)
    }

    /// For what goes past the engine: whether nothing is to be received.
    #[doc(hidden)]
    pub fn is_paused(&self) -> bool {
        self.shared.life().is_paused()
    }

    /// For what goes past the engine: its name with its poller, on that one's thread.
    #[doc(hidden)]
    pub fn local_token(&self) -> Option<Token> {
        self.shared.mailbox().is_local().then(|| self.shared.token())
    }

    /// Whether it was neither closed nor aborted, by this side or by its end.
    #[doc(hidden)]
    pub fn is_open(&self) -> bool {
        !self.shared.life().is_closed()
    }

    /// Whether the server is shutting down that the connection belongs to.
    pub fn is_draining(&self) -> bool {
        self.shared.life().is_draining()
    }

    /// For layers above: whether it is draining, and everything that had arrived when that began has been handed over.
    #[doc(hidden)]
    pub fn is_drained(&self) -> bool {
        self.shared.life().is_drained()
    }

    /// For layers above, which wait for the peer all the time: they work at a request, so the connection is not idle. As often
    /// as [`end_request`](Control::end_request) is to be called.
    #[doc(hidden)]
    pub fn begin_request(&self, has_body: bool) {
        self.shared.begin_request(has_body);
    }

    /// They do not any more.
    #[doc(hidden)]
    pub fn end_request(&self) {
        self.shared.end_request();
    }

    /// They have handed over all that there is.
    #[doc(hidden)]
    pub fn flushed(&self) {
        self.shared.flushed();
    }

    /// What they have done so far.
    #[doc(hidden)]
    pub fn requests(&self) -> Requests {
        self.shared.requests()
    }

    /// Bytes that were flushed and that the kernel has not taken.
    pub fn unsent_bytes(&self) -> usize {
        self.shared.unsent().0
    }

    /// Bytes that were received so far, also when it is over. Of TLS they are those of its records.
    pub fn received_bytes(&self) -> u64 {
        self.shared.life().received_bytes
    }

    /// Bytes that the kernel has taken to send so far, also when it is over. The peer may not have them yet.
    pub fn sent_bytes(&self) -> u64 {
        self.shared.life().sent_bytes
    }

    /// What it may hold in one direction of its poller's memory budget, in bytes.
    #[doc(hidden)]
    pub fn share_bytes(&self) -> usize {
        self.shared.mailbox().share()
    }

    /// If it is idle for too long while nothing waits to be sent, that is no end that cuts something short, though a server serves it.
    #[doc(hidden)]
    pub fn ends_when_idle(&self) {
        self.shared.adjust(|life| life.ends_when_idle());
    }

    /// Bytes were moved past the poller.
    #[doc(hidden)]
    pub fn count_moved(&self, received: u64, sent: u64) {
        let mut life = self.shared.life();
        life.received_bytes += received;
        life.sent_bytes += sent;
    }

    /// A number that no other connection of this process has.
    pub fn id(&self) -> u64 {
        self.shared.id()
    }

    /// The address of the other end of a TCP connection, also when it is over; none on a Unix socket, and before a dial has
    /// succeeded.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.shared.life().peer.get()
    }

    /// For whoever has had the socket before it was a connection's.
    #[doc(hidden)]
    pub fn expose(&self) {
        self.shared.expose();
    }

    /// For whoever has made the connection.
    #[doc(hidden)]
    pub fn remember_peer(&self, address: SocketAddr) {
        let peer = Peer::from(address);
        let before = std::mem::replace(&mut self.shared.life().peer, peer);
        drop(before);
    }

    /// From now on, sends pieces of at least so many bytes without a copy (`MSG_ZEROCOPY`, `IORING_OP_SENDMSG_ZC`); none
    /// if `None`. A piece is a [`Slice`](crate::Slice) that was pushed, or what was written into one block; smaller
    /// ones before and between them go out by themselves, in order.
    ///
    /// The memory of such a send stays in use until the peer has acknowledged the bytes. What it costs to arrange that
    /// is won back from some 10 KiB on, over a real network; where the kernel reports that it has copied the bytes all
    /// the same, as over loopback, the connection goes back to copying, until this is called again. So does one over a
    /// Unix socket.
    ///
    /// # Errors
    /// [`Unsupported`](std::io::ErrorKind::Unsupported) if the engine of this connection cannot do it on this kernel;
    /// the text says why.
    #[cfg(feature = "zerocopy")]
    pub fn set_zerocopy(&self, bytes: Option<usize>) -> std::io::Result<()> {
        if bytes.is_some() {
            self.shared.mailbox().check_zerocopy()?;
        }
        self.shared.set_zerocopy_bytes(bytes);
        Ok(())
    }

    /// Closes the connection; what is staged is not sent. See [`Reader::close`](super::Reader::close).
    pub fn close(&self) {
        self.shared.close(None);
    }

    /// Ends the connection at once, with a reset on TCP, and an end of the stream on Unix sockets: what was flushed and not
    /// sent is dropped. Whoever waits is woken with `ECONNABORTED`.
    pub fn abort(&self) {
        self.shared.change(|life| life.abort(self.shared.clock()));
    }

    /// Changes a limit, and sees to it that a wait that is under way keeps the new one.
    fn limit(&self, limit: Limit) {
        let now = self.shared.clock().now();
        self.shared.change(|life| life.limit(limit, now));
    }
}

/// Which connection it is, for logs.
impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {:#x}", self.id())?;
        self.peer_addr().map_or(Ok(()), |peer| write!(f, " with {peer}"))
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.shared).finish()
    }
}
