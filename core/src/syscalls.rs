//! What both engines ask of the kernel beside receiving and sending, written once.
//!
//! The core itself calls none of it. Here are the descriptors' system calls with the hooks by which a test makes them
//! fail: see [`fault!`](crate::fault).

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags};

use crate::poll::Notify;

/// Returns early from a system call that a test wants to fail.
#[doc(hidden)]
#[macro_export]
macro_rules! fault {
    ($call:ident) => {
        #[cfg(duopoll_faults)]
        if let Some(errno) = $crate::faults::errno($crate::faults::Call::$call) {
            return Err(::std::io::Error::from_raw_os_error(errno));
        }
    };
}

/// Calls again while a signal interrupts.
#[inline]
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The counter by which other threads wake an engine that waits for it.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A counter at zero.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE` or `ENOMEM`.
    pub fn new() -> io::Result<EventFd> {
        fault!(EventFd);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(EventFd(rustix::event::eventfd(0, flags)?))
    }

    /// Adds one, which makes it readable.
    ///
    /// # Errors
    /// `EAGAIN`: it is at its end, 2^64 - 2.
    pub fn increment(&self) -> io::Result<()> {
        uninterrupted(|| {
            fault!(Notify);
            rustix::io::write(&self.0, &1u64.to_ne_bytes())?;
            Ok(())
        })
    }

    /// Sets it to zero, which makes it unreadable.
    pub fn reset(&self) {
        // EAGAIN: it is zero already.
        let _ = rustix::io::read(&self.0, &mut [0; size_of::<u64>()]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Notify for EventFd {
    fn notify(&self) {
        // EAGAIN: it has been readable for long, and the engine is told. Nothing else can happen.
        let _ = self.increment();
    }
}

/// Sends as much of the pieces as the socket has room for. Never raises SIGPIPE.
///
/// # Errors
/// `EAGAIN` without room; what has ended the connection.
pub fn send(fd: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    uninterrupted(|| {
        fault!(Send);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::sendmsg(fd, pieces, &mut SendAncillaryBuffer::default(), flags)?)
    })
}

/// Whether this process or machine has run out of something: descriptors, memory.
pub fn is_shortage(error: &io::Error) -> bool {
    let short = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
    error.raw_os_error().is_some_and(|errno| short.contains(&errno))
}

/// Accepts one connection of a non-blocking listener, close-on-exec and non-blocking.
///
/// # Errors
/// `EAGAIN` if nobody waits; that of a connection that was gone before (`ECONNABORTED` and those of the network); what the process
/// or the machine has run out of; `EINVAL` and the like if this is no listener any more.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let accept = || {
        fault!(Accept);
        Ok(rustix::net::accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
    };
    match uninterrupted(accept) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => accept_without_flags(fd),
        result => result,
    }
}

/// For kernels before 2.6.28 and sandboxes that know no `accept4`. Another thread that forks and execs in between
/// can leak the descriptor to the child.
fn accept_without_flags(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let accepted = uninterrupted(|| Ok(rustix::net::accept(fd)?))?;
    rustix::io::fcntl_setfd(&accepted, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&accepted, true)?;
    Ok(accepted)
}

/// Whether an error of [`accept`] says that the socket is no listener any more: asking again would spin.
pub fn is_no_listener(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBADF | libc::ENOTSOCK))
}

/// Connections accepted from one listener in one turn, at most: what else has happened does not wait behind a storm of them.
pub const ACCEPTS_PER_TURN: usize = 64;

/// Shuts the sending direction of a stream down.
pub fn finish(fd: BorrowedFd<'_>) {
    // ENOTCONN: the peer was faster, and there is nothing left to shut down.
    let _ = shutdown(fd, Shutdown::Write);
}

/// Sees to it that closing a socket does not wait for what is on its way, whatever its user has set (`SO_LINGER`). A time of
/// zero is left, which asks for a reset.
pub fn close_at_once(fd: BorrowedFd<'_>) {
    let waits = rustix::net::sockopt::socket_linger(fd);
    if waits.is_ok_and(|waits| waits.is_some_and(|time| !time.is_zero())) {
        let _ = rustix::net::sockopt::set_socket_linger(fd, None);
    }
}

/// Has receiving end behind what has arrived; the peer is not told.
pub fn end_receiving(fd: BorrowedFd<'_>) {
    // ENOTCONN: it has ended anyway.
    let _ = shutdown(fd, Shutdown::Read);
}

/// Shuts both directions of a socket down, under whoever uses it.
pub fn shut_down(fd: BorrowedFd<'_>) {
    // ENOTCONN: the peer was faster.
    let _ = shutdown(fd, Shutdown::Both);
}

/// Empties a socket that was shut down and stays open. What is left in it would keep TCP's window closed, and a peer that has
/// more to send would wait for ever; what comes now is answered with a reset.
pub fn empty(fd: BorrowedFd<'_>) {
    let mut discarded = [0; 16 << 10];
    for _ in 0..DISCARDS_MAX {
        match rustix::net::recv(fd, &mut discarded, RecvFlags::DONTWAIT) {
            Ok((_, n)) if n > 0 => {}
            _ => break,
        }
    }
}

/// Reads of 16 KiB by which a socket that is shut down is emptied, at most: more than a socket holds by default.
const DISCARDS_MAX: usize = 1024;

fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) -> io::Result<()> {
    fault!(Shutdown);
    Ok(rustix::net::shutdown(fd, how)?)
}

/// Ends a connection at once: TCP sends a reset, and whoever waits in the kernel is woken. Unix sockets cannot ask
/// for one, and are shut down.
pub fn reset(fd: BorrowedFd<'_>) {
    // connect(2): AF_UNSPEC dissolves the association.
    if rustix::net::connect_unspec(fd).is_err() {
        shut_down(fd);
    }
}

/// What a socket is ready for: to be received from (`IN`), to be sent to (`OUT`); and whether its peer has ended (`RDHUP`), or
/// it is broken (`HUP`, `ERR`).
pub fn ready(fd: BorrowedFd<'_>) -> PollFlags {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let events = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP;
    let mut entry = [PollFd::from_borrowed_fd(fd, events)];
    match poll(&mut entry, Some(&now)) {
        Ok(_) => entry[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// What [`ready`] says of a stream whose peer has ended, or that is broken.
pub const HAS_ENDED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP);

/// Bytes that the socket holds.
pub fn unread_bytes(fd: BorrowedFd<'_>) -> usize {
    rustix::io::ioctl_fionread(fd).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0))
}

/// Bytes that were sent and the peer's kernel has not acknowledged, or on a Unix socket what the peer has not read; a FIN counts as one.
pub fn unacknowledged_bytes(fd: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes an int.
    let told = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if told == -1 { 0 } else { usize::try_from(bytes).unwrap_or(0) }
}

/// What a TCP peer's kernel has acknowledged, and how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Bytes, in all.
    pub bytes: u64,
    /// Since it has last acknowledged anything, in milliseconds.
    pub since_ms: u32,
}

/// What the peer of a TCP socket has acknowledged; none of another socket.
pub fn acknowledged(fd: BorrowedFd<'_>) -> Option<Acknowledged> {
    /// What the kernel writes, to the field that is asked for: `tcp_info` of Linux 4.1.
    #[repr(C)]
    struct Info {
        _states: [u8; 8],
        _before: [u32; 12],
        last_ack_recv: u32,
        _between: [u32; 11],
        _pacing: [u64; 2],
        bytes_acked: u64,
    }
    const { assert!(size_of::<Info>() == 128) };
    // SAFETY: all of it may be zero.
    let mut info: Info = unsafe { mem::zeroed() };
    let mut len = size_of::<Info>() as libc::socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: the kernel writes at most so many bytes.
    let told = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut len)
    };
    let whole = told == 0 && len as usize == size_of::<Info>();
    whole.then_some(Acknowledged { bytes: info.bytes_acked, since_ms: info.last_ack_recv })
}

/// How a connect(2) that was under way has ended.
///
/// # Errors
/// What it has failed with, or what keeps the socket from telling.
pub fn connect_result(fd: BorrowedFd<'_>) -> io::Result<()> {
    fault!(ConnectResult);
    Ok(rustix::net::sockopt::socket_error(fd)??)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_acknowledged_is_told_of_tcp_only() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let mut one = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (mut other, _) = listener.accept().expect("accepted");
        one.write_all(&[7; 5000]).expect("sent");
        other.read_exact(&mut [0; 5000]).expect("received");
        while unacknowledged_bytes(one.as_fd()) > 0 {
            std::thread::yield_now();
        }
        let told = acknowledged(one.as_fd()).expect("TCP");
        assert_eq!(told.bytes, 5001, "with the SYN");
        assert!(told.since_ms < 60_000, "{told:?}");
        let (unix, _peer) = UnixStream::pair().expect("a pair");
        assert_eq!(acknowledged(unix.as_fd()), None);
    }

    #[test]
    fn a_notification_stays_until_it_is_reset() {
        let event = EventFd::new().expect("a descriptor");
        event.notify();
        event.notify();
        let mut count = [0; size_of::<u64>()];
        rustix::io::read(&event, &mut count).expect("readable");
        assert_eq!(u64::from_ne_bytes(count), 2);
        event.notify();
        event.reset();
        event.reset();
        let error = rustix::io::read(&event, &mut count).expect_err("it is zero");
        assert_eq!(error, rustix::io::Errno::AGAIN);
    }

    #[test]
    fn a_reset_is_seen_by_the_peer_and_a_unix_socket_is_shut_down() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let ours = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (mut peer, _) = listener.accept().expect("accepted");
        assert!(connect_result(ours.as_fd()).is_ok());
        reset(ours.as_fd());
        let error = peer.read(&mut [0]).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        let (ours, mut peer) = UnixStream::pair().expect("a pair");
        peer.write_all(b"abc").expect("room");
        assert_eq!(unread_bytes(ours.as_fd()), 3);
        reset(ours.as_fd());
        assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
    }
}
