//! Connections that this side opens.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use duopoll_core::Limits;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::address::{Address, IntoAddress};
use crate::connection::Connection;
use crate::poller::Handle;
use crate::pollers::Pollers;
use crate::resolver::{connect_blocking, resolve};
use crate::tcp::{Keepalive, TcpOptions, not_tcp};

/// How long an address may take before the next one is tried beside it (RFC 8305, "Connection Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried, at most.
const ATTEMPTS_MAX: usize = 16;
/// How long a Unix socket waits for room in the listener's backlog if no timeout is set.
const UNIX_PATIENCE: Duration = Duration::from_secs(60);
/// Longer than anything takes, and short enough to be added to the time of day.
const TIMEOUT_MAX: Duration = Duration::from_secs(1 << 32);

/// Opens connections.
///
/// ```no_run
/// # async fn example() -> std::io::Result<()> {
/// use duopoll::Dialer;
/// use std::time::Duration;
///
/// let dialer = Dialer::new().timeout(Duration::from_secs(1));
/// let mut connection = dialer.dial("localhost:6379").await?;
/// connection.write(b"PING\r\n")?;
/// connection.flush().await?;
/// let reply = connection.until(b'\n', 1024).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Dialer {
    timeout: Option<Duration>,
    local: Option<Address>,
    limits: Limits,
    tcp: TcpOptions,
    prepare: Option<Arc<Prepare>>,
    pollers: Option<Pollers>,
}

type Prepare = dyn Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync;

/// What can be dialed.
#[derive(Clone, Debug)]
enum Target {
    Address(Address),
    /// `HOST:PORT`, to be resolved.
    Name(String),
}

impl Dialer {
    /// A dialer with the defaults: no timeout but the kernel's, and any local address.
    pub fn new() -> Dialer {
        Dialer::default()
    }

    /// How long a dial may take, over all addresses, with the resolution of the name.
    pub fn timeout(mut self, timeout: Duration) -> Dialer {
        self.timeout = Some(timeout);
        self
    }

    /// The address to dial from. Remote addresses of another family are passed over.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a text that is no address.
    pub fn local_addr(mut self, address: impl IntoAddress) -> io::Result<Dialer> {
        self.local = Some(address.into_address()?);
        Ok(self)
    }

    /// What the connections may hold and wait for.
    pub fn limits(mut self, limits: Limits) -> Dialer {
        self.limits = limits;
        self
    }

    /// TCP keepalive. Default: none. A dial to a Unix socket is [`Unsupported`](io::ErrorKind::Unsupported) then.
    pub fn keepalive(mut self, keepalive: Keepalive) -> Dialer {
        self.tcp.keepalive = Some(keepalive);
        self
    }

    /// How long sent bytes may stay unacknowledged before the connection ends with `ETIMEDOUT` (`TCP_USER_TIMEOUT`),
    /// in milliseconds. Default: the kernel's, about a quarter of an hour. A dial to a Unix socket is
    /// [`Unsupported`](io::ErrorKind::Unsupported) then.
    pub fn user_timeout(mut self, timeout: Duration) -> Dialer {
        self.tcp.user_timeout = Some(timeout);
        self
    }

    /// Called with each socket before it connects, for other options. An error is that of the address; the next one is
    /// tried.
    pub fn prepare<F>(mut self, prepare: F) -> Dialer
    where
        F: Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync + 'static,
    {
        self.prepare = Some(Arc::new(prepare));
        self
    }

    /// The pollers that the connections live on. Default: the poller that the dial is called on, as in a server's
    /// handler, and elsewhere the [global ones](Pollers::global). A proxy has both connections on one thread then.
    pub fn pollers(mut self, pollers: Pollers) -> Dialer {
        self.pollers = Some(pollers);
        self
    }

    /// Opens a connection to `HOST:PORT`, or to whatever [`Address`] describes. TCP connections have `TCP_NODELAY`.
    ///
    /// A name is resolved on a thread of its own. Its addresses are tried in the resolver's order, the two families
    /// in turn; when one has not answered after 250 milliseconds, or has refused, the next one is tried beside it,
    /// and the first connection wins.
    ///
    /// Dropping the future gives up: sockets whose connect is under way are closed.
    ///
    /// # Errors
    /// The errno of the last address that failed, for instance `ECONNREFUSED` or `EHOSTUNREACH`;
    /// [`TimedOut`](io::ErrorKind::TimedOut) if the timeout came first;
    /// [`NotFound`](io::ErrorKind::NotFound) for a name without a suitable address.
    pub async fn dial(&self, target: &str) -> io::Result<Connection> {
        self.dial_target(Target::parse(target)?).await
    }

    /// As [`dial`](Dialer::dial), to an address that is known.
    ///
    /// # Errors
    /// As for `dial`.
    pub async fn dial_addr(&self, address: impl Into<Address>) -> io::Result<Connection> {
        self.dial_target(Target::Address(address.into())).await
    }

    async fn dial_target(&self, target: Target) -> io::Result<Connection> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout.min(TIMEOUT_MAX));
        let addresses = match target {
            Target::Address(address) => vec![address],
            Target::Name(name) => resolve(name, deadline).await?,
        };
        let suitable = addresses.into_iter().filter(|address| self.suits(address));
        let mut attempts = Vec::new();
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "no suitable address");
        for address in suitable.take(ATTEMPTS_MAX) {
            match self.begin(&address, deadline).await {
                Ok(connection) => attempts.push(connection),
                Err(error) => {
                    failed = error;
                    continue;
                }
            }
            let next = Instant::now() + ATTEMPT_DELAY;
            let patience = deadline.map_or(next, |deadline| deadline.min(next));
            match race(&mut attempts, Some(patience)).await {
                Ok(connection) => return Ok(self.established(connection)),
                Err(error) => failed = error,
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        while !attempts.is_empty() {
            match race(&mut attempts, deadline).await {
                Ok(connection) => return Ok(self.established(connection)),
                Err(error) if is_deadline(&error) => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn suits(&self, address: &Address) -> bool {
        match (&self.local, address) {
            (Some(Address::Tcp(local)), Address::Tcp(remote)) => {
                local.is_ipv4() == remote.is_ipv4()
            }
            (Some(Address::Tcp(_)), _) | (Some(_), Address::Tcp(_)) => false,
            _ => true,
        }
    }

    /// Begins to connect.
    async fn begin(&self, address: &Address, deadline: Option<Instant>) -> io::Result<Connection> {
        let remote = address.to_sock_addr()?;
        let socket = self.socket(&remote)?;
        let connecting = match socket.connect(&remote) {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINPROGRESS | libc::EINTR) => true,
                // A Unix listener's backlog is full, and the kernel does not tell when it no longer is.
                Some(libc::EAGAIN) if remote.is_unix() => {
                    let deadline = deadline.unwrap_or_else(|| Instant::now() + UNIX_PATIENCE);
                    let socket = connect_blocking(socket, remote, deadline).await?;
                    return self.adopt(socket, false).await;
                }
                _ => return Err(error),
            },
        };
        self.adopt(socket.into(), connecting).await
    }

    fn socket(&self, remote: &SockAddr) -> io::Result<Socket> {
        let domain = Domain::from(i32::from(remote.family()));
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        if !remote.is_unix() {
            socket.set_tcp_nodelay(true)?;
            self.tcp.apply(&socket)?;
        } else if !self.tcp.is_default() {
            return Err(not_tcp("keepalive or user timeout"));
        }
        if let Some(prepare) = &self.prepare {
            prepare(socket.as_fd())?;
        }
        if let Some(local) = &self.local {
            socket.bind(&local.to_sock_addr()?)?;
        }
        Ok(socket)
    }

    /// Gives the socket to a poller.
    async fn adopt(&self, socket: OwnedFd, connecting: bool) -> io::Result<Connection> {
        let handle = match (&self.pollers, Handle::current()) {
            (Some(pollers), _) => pollers.pick(),
            (None, Some(here)) => here,
            (None, None) => Pollers::global()?.pick(),
        };
        handle.adopt(socket, self.limits, connecting).await
    }

    /// From here on the connection's own limits count, not those of the dial.
    fn established(&self, connection: Connection) -> Connection {
        connection.set_write_deadline(None);
        connection
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("timeout", &self.timeout)
            .field("local", &self.local)
            .field("limits", &self.limits)
            .field("tcp", &self.tcp)
            .field("pollers", &self.pollers)
            .finish_non_exhaustive()
    }
}

/// The first of the connections that is established. Ends early with the error of those that fail, which are taken out,
/// and at the deadline with `TimedOut`, none taken out.
async fn race(attempts: &mut Vec<Connection>, deadline: Option<Instant>) -> io::Result<Connection> {
    for attempt in &*attempts {
        attempt.set_write_deadline(deadline);
    }
    poll_fn(|cx| {
        let mut failed = None;
        let mut index = 0;
        while index < attempts.len() {
            match attempts[index].writer().poll_connected(cx) {
                Poll::Pending => index += 1,
                Poll::Ready(Ok(())) if is_self_connected(&attempts[index]) => {
                    attempts.remove(index);
                    failed = Some(io::Error::from_raw_os_error(libc::ECONNREFUSED));
                }
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(attempts.swap_remove(index))),
                Poll::Ready(Err(error)) if is_deadline(&error) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => {
                    attempts.remove(index);
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Pending,
        }
    })
    .await
}

/// Whether it is our deadline that has passed, rather than the kernel's patience (`ETIMEDOUT`).
fn is_deadline(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

/// A TCP socket that dials a local port nobody listens on may be given that very port, and then it is connected to
/// itself. Nobody listens there.
fn is_self_connected(connection: &Connection) -> bool {
    let is_tcp = matches!(connection.peer_addr(), Ok(Address::Tcp(_)));
    is_tcp && connection.peer_addr().ok() == connection.local_addr().ok()
}

impl Target {
    fn parse(text: &str) -> io::Result<Target> {
        if text.starts_with("unix:") {
            return text.parse().map(Target::Address);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Target::Address(address.into()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Target::Name(text.into()))
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{text}` is neither HOST:PORT nor unix:PATH"),
            )),
        }
    }
}
