//! Options of TCP sockets.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use duopoll_core::syscalls;
use socket2::{Domain, SockRef, TcpKeepalive};

/// When the kernel probes a peer that is silent, and when it gives it up (`SO_KEEPALIVE`).
///
/// ```
/// use duopoll::Keepalive;
/// use std::time::Duration;
///
/// // Dead after a minute of silence and three unanswered probes, 10 seconds apart.
/// let keepalive = Keepalive::after(Duration::from_secs(60)).interval(Duration::from_secs(10)).count(3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keepalive {
    idle: Duration,
    interval: Option<Duration>,
    count: Option<u32>,
}

impl Keepalive {
    /// Probes after so long a silence (`TCP_KEEPIDLE`), in whole seconds, from 1 to 32,767.
    pub fn after(idle: Duration) -> Keepalive {
        Keepalive { idle, interval: None, count: None }
    }

    /// The time between two probes (`TCP_KEEPINTVL`), in whole seconds, from 1 to 32,767. Default: the kernel's,
    /// usually 75 seconds.
    pub fn interval(mut self, interval: Duration) -> Keepalive {
        self.interval = Some(interval);
        self
    }

    /// How many probes may stay unanswered before the connection ends with `ETIMEDOUT` (`TCP_KEEPCNT`), from 1 to
    /// 127. Default: the kernel's, usually 9.
    pub fn count(mut self, count: u32) -> Keepalive {
        self.count = Some(count);
        self
    }
}

/// What is set on a socket before it is used; nothing where the kernel's default stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpOptions {
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) user_timeout: Option<Duration>,
}

impl TcpOptions {
    pub(crate) fn is_default(&self) -> bool {
        *self == TcpOptions::default()
    }

    pub(crate) fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        if let Some(keepalive) = self.keepalive {
            set_keepalive(socket, Some(keepalive))?;
        }
        if let Some(timeout) = self.user_timeout {
            set_user_timeout(socket, Some(timeout))?;
        }
        Ok(())
    }
}

pub(crate) fn set_keepalive(socket: &impl AsFd, keepalive: Option<Keepalive>) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let Some(Keepalive { idle, interval, count }) = keepalive else {
        return socket.set_keepalive(false);
    };
    let mut options = TcpKeepalive::new().with_time(idle);
    if let Some(interval) = interval {
        options = options.with_interval(interval);
    }
    if let Some(count) = count {
        options = options.with_retries(count);
    }
    socket.set_tcp_keepalive(&options)
}

pub(crate) fn set_user_timeout(socket: &impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    // In milliseconds, of which 0 would be the kernel's default.
    let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
    SockRef::from(socket).set_tcp_user_timeout(timeout)
}

/// Has the kernel choose the port when the socket connects, and not when it is bound.
pub(crate) fn bind_without_port(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads an int.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The error of an option that a Unix socket does not have.
pub(crate) fn not_tcp(option: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("a Unix socket has no {option}"))
}

/// Bytes that were sent and the peer's kernel has not acknowledged; a FIN counts as one. On a Unix socket it has them at once.
pub(crate) fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> usize {
    let is_unix = SockRef::from(&socket).domain().is_ok_and(|domain| domain == Domain::UNIX);
    if is_unix { 0 } else { syscalls::unacknowledged_bytes(socket) }
}
