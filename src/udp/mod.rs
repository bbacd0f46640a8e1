//! Datagrams: UDP over IPv4 and IPv6, and Unix sockets.
//!
//! ```no_run
//! use duopoll::udp::{Outgoing, UdpSocket};
//!
//! # async fn example() -> std::io::Result<()> {
//! let mut socket = UdpSocket::bind("0.0.0.0:7").await?;
//! let mut received = Vec::new();
//! loop {
//!     // All that there is, by one system call.
//!     socket.recv_many(&mut received).await?;
//!     for datagram in received.drain(..) {
//!         let bytes = datagram.bytes.clone();
//!         socket.stage(Outgoing::reply(bytes, &datagram));
//!     }
//!     // All of the replies, by another.
//!     if let Err(error) = socket.flush().await {
//!         eprintln!("one was not sent: {error}");
//!     }
//! }
//! # }
//! ```
//!
//! A socket is on a poller, which tells when there is something to receive, or room to send; `recvmmsg` and `sendmmsg` do it, on both engines.
//! io_uring has operations for it that cost no less: see `docs/architecture.md`.
//!
//! # Errors
//! None of them ends a socket. What a router or a peer says of a datagram (ICMP) the kernel tells a *connected* socket, once, and as the error
//! of whatever is done next: [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) where nobody listens, as long as that peer does not.
//! What is being sent is sent all the same.
//!
//! | what is sent | what comes of it |
//! |---|---|
//! | nothing | an empty datagram |
//! | more than 65,507 bytes, 65,527 over IPv6 | `EMSGSIZE` |
//! | to an address of IPv6 from a socket of IPv4 | `EAFNOSUPPORT` |
//! | to an address of IPv4 from a socket that is only for IPv6 | `ENETUNREACH` |
//! | nowhere, from a socket that is not connected | `EDESTADDRREQ` |
//! | to a broadcast address without [`broadcast`](UdpOptions::broadcast) | `EACCES` |
//!
//! # Cancellation
//! Every future may be dropped: what was received and not taken is kept for the next, and what is staged and was not sent stays staged.
//! [`time::timeout`](crate::time::timeout) bounds them.

mod address;
mod control;
mod datagram;
mod options;
mod receiving;
mod room;
mod sending;
mod serve;
mod unix;

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use duopoll_core::{Direction, Kind};
use rustix::net::sockopt;
use socket2::{SockAddr, SockRef};

use crate::async_fd::Watching;
use crate::time::{Sleep, sleep};
pub use address::Peer;
pub use datagram::{Datagram, Ecn, Outgoing};
pub use options::UdpOptions;
use receiving::Inbox;
pub(crate) use room::{Room, Seat};
use sending::Ability;
pub use serve::UdpServer;
pub use unix::UnixDatagram;

/// Batches that are received in a row before others have their turn.
const BATCHES_MAX: u8 = 4;
/// After so long it is tried again to send to a Unix socket that has no room, of which the kernel does not tell.
const RETRY: Duration = Duration::from_millis(2);
/// Calls that send in a row before others have their turn.
const SENDS_MAX: usize = 8;

/// A socket of UDP. See the [module](self).
pub type UdpSocket = DatagramSocket<SocketAddr>;

/// A half of a [`UdpSocket`] that sends.
pub type UdpSender = DatagramSender<SocketAddr>;

/// A socket for datagrams, on a poller, whose peers have such addresses: a [`UdpSocket`], or a [`UnixDatagram`].
pub struct DatagramSocket<A: Peer> {
    inbox: Inbox<A>,
    /// Batches since it was waited for one.
    batches: u8,
    sends: DatagramSender<A>,
}

/// What the halves of a socket share.
struct Shared {
    socket: OwnedFd,
    watching: Watching,
    ability: Ability,
    is_unix: bool,
    room: Arc<Room>,
}

impl UdpSocket {
    /// Binds a socket with the options that are the default: see [`UdpOptions::bind`].
    ///
    /// # Errors
    /// As there.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        UdpSocket::options().bind(address).await
    }

    /// Options for a socket.
    pub fn options() -> UdpOptions {
        UdpOptions::default()
    }

    /// A socket that is there already, which is made non-blocking. To receive in large pieces, or with addresses, it has to have those
    /// options; those that go together in sending are found out.
    ///
    /// # Errors
    /// `EINVAL` if it is a socket, and none of UDP, `ENOTSOCK` if it is none at all; [`NotConnected`](io::ErrorKind::NotConnected) if the pollers have ended.
    pub async fn from_std(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        UdpSocket::from_fd(socket.into(), &UdpOptions::default()).await
    }

    /// As [`from_std`](UdpSocket::from_std), by its descriptor, and with options.
    ///
    /// # Errors
    /// As there, and what an option is refused with.
    pub async fn from_fd(socket: OwnedFd, options: &UdpOptions) -> io::Result<UdpSocket> {
        if SockRef::from(&socket).protocol()? != Some(socket2::Protocol::UDP) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let is_ipv6 = local_addr(socket.as_fd())?.is_ipv6();
        options.apply(socket.as_fd(), is_ipv6)?;
        UdpSocket::watched(socket, options).await
    }

    async fn watched(socket: OwnedFd, options: &UdpOptions) -> io::Result<UdpSocket> {
        let is_ipv6 = local_addr(socket.as_fd())?.is_ipv6();
        let service = match is_ipv6 {
            true => sockopt::ipv6_tclass(&socket)? as u8,
            false => sockopt::ip_tos(&socket)?,
        };
        let ability = Ability::new(is_ipv6, service, options.coalesces());
        DatagramSocket::on_a_poller(socket, ability, options.has_gro()).await
    }

    /// From now on only datagrams of that peer come, beside those that have come already, and [`Outgoing::connected`] goes there. Again, to
    /// another one, as often as is wanted.
    ///
    /// # Errors
    /// The kernel's: `ENETUNREACH`, `EAFNOSUPPORT`.
    pub fn connect(&self, peer: SocketAddr) -> io::Result<()> {
        SockRef::from(&self.sends.shared.socket).connect(&SockAddr::from(peer))
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        local_addr(self.sends.shared.socket.as_fd())
    }

    /// To whom it is connected.
    ///
    /// # Errors
    /// `ENOTCONN` if it is not.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        internet(SockRef::from(&self.sends.shared.socket).peer_addr()?)
    }
}

/// What sockets of both kinds do.
impl<A: Peer> DatagramSocket<A> {
    async fn on_a_poller(
        socket: OwnedFd,
        ability: Ability,
        large: bool,
    ) -> io::Result<DatagramSocket<A>> {
        let known = SockRef::from(&socket);
        if known.r#type()? != socket2::Type::DGRAM {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        known.set_nonblocking(true)?;
        let is_unix = known.domain()? == socket2::Domain::UNIX;
        let watching = Watching::nearby(socket.try_clone()?, Kind::Datagrams).await?;
        let shared = Arc::new(Shared { socket, watching, ability, is_unix, room: Arc::default() });
        let sends = DatagramSender::of(shared);
        Ok(DatagramSocket { inbox: Inbox::new(large), batches: 0, sends })
    }

    /// The next datagram.
    ///
    /// # Errors
    /// What ICMP has told of an earlier one, if the socket is [connected](UdpSocket::connect); `ENOMEM`; [`NotConnected`](io::ErrorKind::NotConnected)
    /// if the poller has ended.
    pub async fn recv(&mut self) -> io::Result<Datagram<A>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// [`recv`](DatagramSocket::recv) as a poll.
    ///
    /// # Errors
    /// As there.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Datagram<A>>> {
        loop {
            if let Some(datagram) = self.inbox.waiting.pop_front() {
                return Poll::Ready(Ok(datagram));
            }
            ready!(self.poll_batch(cx))?;
        }
    }

    /// All datagrams that one call brings, up to 32, at the end of `datagrams`. How many that was: at least one.
    ///
    /// # Errors
    /// As for [`recv`](DatagramSocket::recv).
    pub async fn recv_many(&mut self, datagrams: &mut Vec<Datagram<A>>) -> io::Result<usize> {
        poll_fn(|cx| self.poll_recv_many(cx, datagrams)).await
    }

    /// [`recv_many`](DatagramSocket::recv_many) as a poll.
    ///
    /// # Errors
    /// As there.
    pub fn poll_recv_many(
        &mut self,
        cx: &mut Context<'_>,
        datagrams: &mut Vec<Datagram<A>>,
    ) -> Poll<io::Result<usize>> {
        if self.inbox.waiting.is_empty() {
            ready!(self.poll_batch(cx))?;
        }
        let count = self.inbox.waiting.len();
        datagrams.extend(self.inbox.waiting.drain(..));
        Poll::Ready(Ok(count))
    }

    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.batches == BATCHES_MAX {
            // Whatever floods this socket, others have their turn.
            self.batches = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (shared, inbox) = (&self.sends.shared, &mut self.inbox);
        let receive = || inbox.receive(shared.socket.as_fd());
        let received = shared.watching.poll_drain(cx, Direction::Read, receive);
        self.batches = if received.is_ready() { self.batches + 1 } else { 0 };
        received
    }

    /// Datagrams that the kernel has dropped since the socket was made, for want of room, as the last one that came has told: what was
    /// dropped behind that one is told by the next. 0 without [`count_drops`](UdpOptions::count_drops). The column `drops` of
    /// /proc/net/udp has them at once.
    pub fn dropped(&self) -> u32 {
        self.inbox.dropped
    }

    /// Leaves a datagram for the next [`flush`](DatagramSocket::flush). What is staged has no bound but the caller's sense.
    pub fn stage(&mut self, datagram: Outgoing<A>) {
        self.sends.stage(datagram);
    }

    /// How many are staged.
    pub fn staged(&self) -> usize {
        self.sends.staged()
    }

    /// Sends what is staged, in that order, and waits while the kernel has no room.
    ///
    /// # Errors
    /// That of the first datagram which cannot be sent, when all others are; those that cannot are dropped. Of a
    /// [connected](UdpSocket::connect) socket also what ICMP has told of an earlier one; those that are staged are sent then. Where
    /// it has to wait, and the poller has ended, [`NotConnected`](io::ErrorKind::NotConnected), and they stay.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.sends.flush().await
    }

    /// [`flush`](DatagramSocket::flush) as a poll.
    ///
    /// # Errors
    /// As there.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sends.poll_flush(cx)
    }

    /// Sends a datagram behind what is staged. Those that go together are better [staged](DatagramSocket::stage) and flushed.
    ///
    /// # Errors
    /// As for [`flush`](DatagramSocket::flush).
    pub async fn send(&mut self, datagram: Outgoing<A>) -> io::Result<()> {
        self.sends.send(datagram).await
    }

    /// Closes it, and returns when its address is free: the poller has a duplicate of it, and lets go of that a moment after the socket
    /// is dropped. Where a [`sender`](DatagramSocket::sender) is left, the address is free when that is gone, and this returns at once.
    pub async fn close(self) {
        if let Ok(Shared { socket, watching, .. }) = Arc::try_unwrap(self.sends.shared) {
            drop(socket);
            watching.end().await;
        }
    }

    /// Another half that sends, with what it stages itself: for other tasks, on any thread. It may outlive the socket; what it has staged
    /// is lost if it is dropped.
    pub fn sender(&self) -> DatagramSender<A> {
        self.sends.clone()
    }
}

/// A half of a [`DatagramSocket`] that sends. A clone has what it stages for itself.
pub struct DatagramSender<A: Peer> {
    shared: Arc<Shared>,
    staged: VecDeque<Outgoing<A>>,
    /// Why one of those that were staged could not be sent, until the others are.
    failed: Option<io::Error>,
    /// When it is tried again, where nobody tells of room.
    retry: Option<Sleep>,
    /// Once it has waited for room.
    seat: Option<Seat>,
}

impl<A: Peer> DatagramSender<A> {
    fn of(shared: Arc<Shared>) -> DatagramSender<A> {
        DatagramSender { shared, staged: VecDeque::new(), failed: None, retry: None, seat: None }
    }

    /// See [`DatagramSocket::stage`].
    pub fn stage(&mut self, datagram: Outgoing<A>) {
        self.staged.push_back(datagram);
    }

    /// See [`DatagramSocket::staged`].
    pub fn staged(&self) -> usize {
        self.staged.len()
    }

    /// See [`DatagramSocket::flush`].
    ///
    /// # Errors
    /// As there.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// See [`DatagramSocket::poll_flush`].
    ///
    /// # Errors
    /// As there.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let DatagramSender { shared, staged, failed, retry, seat } = self;
        if let Some(waits) = retry {
            ready!(Pin::new(waits).poll(cx));
            *retry = None;
        }
        for _ in 0..SENDS_MAX {
            if staged.is_empty() {
                return Poll::Ready(failed.take().map_or(Ok(()), Err));
            }
            let named = staged.front().is_some_and(|first| first.to.is_some());
            let mut send = || sending::send(shared.socket.as_fd(), staged, &shared.ability, failed);
            // Mostly there is room, and nobody need be asked.
            match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if shared.is_unix && named {
                        shared.watching.check()?;
                        // Readiness is of the socket, and not of that peer.
                        ready!(Pin::new(retry.insert(sleep(RETRY))).poll(cx));
                        continue;
                    }
                    let all = seat.get_or_insert_with(|| shared.room.seat()).wait(cx);
                    let mut cx = Context::from_waker(&all);
                    ready!(shared.watching.poll_with(&mut cx, Direction::Write, send))?;
                }
                sent => sent?,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// See [`DatagramSocket::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, datagram: Outgoing<A>) -> io::Result<()> {
        self.stage(datagram);
        self.flush().await
    }
}

impl<A: Peer> Clone for DatagramSender<A> {
    fn clone(&self) -> DatagramSender<A> {
        DatagramSender::of(self.shared.clone())
    }
}

fn local_addr(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    internet(SockRef::from(&socket).local_addr()?)
}

fn internet(address: SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// For socket options. What is received by it is lost to this.
impl<A: Peer> AsFd for DatagramSocket<A> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sends.shared.socket.as_fd()
    }
}

impl<A: Peer> fmt::Debug for DatagramSocket<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramSocket")
            .field("socket", &self.sends.shared.socket)
            .field("waiting", &self.inbox.waiting.len())
            .field("staged", &self.staged())
            .finish_non_exhaustive()
    }
}

impl<A: Peer> fmt::Debug for DatagramSender<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramSender").field("staged", &self.staged.len()).finish_non_exhaustive()
    }
}
