//! Connections that this side opens.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use duopoll_core::Limits;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::address::{self, Address, IntoAddress};
use crate::connection::Connection;
use crate::listener::SocketFile;
use crate::named::{Doing, named};
use crate::poller::{Handle, over};
use crate::pollers::Pollers;
use crate::resolver::{Resolve, Resolving, in_turn, resolve};
use crate::tcp::{self, Keepalive, TcpOptions, not_tcp};
use crate::time::{Sleep, Timeout};
use crate::trace;
use duopoll_core::seam::WriterSeam;

/// How long an address may take before the next one is tried beside it (RFC 8305, "Connection Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried, at most.
const ATTEMPTS_MAX: usize = 16;
/// How long a Unix socket waits for room in the listener's backlog if no timeout is set.
const UNIX_PATIENCE: Duration = Duration::from_secs(60);
/// When it looks again whether there is some, since the kernel does not tell: doubled from the first to the last.
const UNIX_RETRIES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
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
    resolver: Option<Arc<Resolve>>,
    pollers: Option<Pollers>,
}

type Prepare = dyn Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync;

/// What can be dialed.
#[derive(Clone, Debug)]
enum Target {
    Address(Address),
    /// To be resolved.
    Name {
        host: String,
        port: u16,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Address(address) => address.fmt(f),
            Target::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
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

    /// The address to dial from. Remote addresses of another family are passed over. With port 0 the kernel chooses the port
    /// when it connects (`IP_BIND_ADDRESS_NO_PORT`), so that one is enough for many remote addresses. The file that a Unix
    /// path makes goes with the connection, so there can be one of them at a time.
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

    /// Resolves names in place of the C library's resolver: is given host and port, and gives the addresses in the order in
    /// which they are to be tried. Dropping its future must give up.
    pub fn resolver<F, T>(mut self, resolver: F) -> Dialer
    where
        F: Fn(String, u16) -> T + Send + Sync + 'static,
        T: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        self.resolver = Some(Arc::new(move |host, port| Box::pin(resolver(host, port))));
        self
    }

    /// The pollers that the connections live on. Default: the poller that the dial is called on, as in a server's
    /// handler, elsewhere those that the thread has [entered](Pollers::enter), and else the [global ones](Pollers::global). A proxy has both connections on one thread then.
    pub fn pollers(mut self, pollers: Pollers) -> Dialer {
        self.pollers = Some(pollers);
        self
    }

    /// Opens a connection to `HOST:PORT`, or to whatever [`Address`] describes. TCP connections have `TCP_NODELAY`.
    ///
    /// A name is resolved on one of at most 32 threads, unless there is another [resolver](Dialer::resolver). Its addresses are
    /// tried in the resolver's order, the two families
    /// in turn; when one has not answered after 250 milliseconds, or has refused, the next one is tried beside it,
    /// and the first connection wins.
    ///
    /// Limits of the connection begin to count when it is established. Dropping the future gives up: sockets whose connect is
    /// under way are closed.
    ///
    /// # Errors
    /// That of the last address that failed: its text names the address, or the name that was dialed, its
    /// [source](std::error::Error::source) has the errno, for instance `ECONNREFUSED` or `EHOSTUNREACH`.
    /// [`TimedOut`](io::ErrorKind::TimedOut) if the timeout came first;
    /// [`NotFound`](io::ErrorKind::NotFound) for a name that cannot be resolved, or has no suitable address;
    /// [`NotConnected`](io::ErrorKind::NotConnected) if the pollers have ended.
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
        // Boxed: whoever dials would hold its room, a kilobyte, for as long as the connection lives.
        let dialed = Box::pin(self.dial_within(&target)).await;
        let dialed = dialed.map_err(|error| named(error, Doing::Dialing, &*target.to_string()));
        match &dialed {
            Ok(connection) => trace::dialed(&connection.control(), &target),
            Err(error) => trace::dial_failed(error),
        }
        dialed
    }

    async fn dial_within(&self, target: &Target) -> io::Result<Connection> {
        let poller = self.poller()?;
        let now = || poller.clock().instant();
        let deadline = self.timeout.map(|timeout| now() + timeout.min(TIMEOUT_MAX));
        let addresses = match target {
            Target::Address(address) => vec![address.clone()],
            Target::Name { host, port } => {
                let resolving = self.resolve(host.clone(), *port);
                in_turn(within(&poller, deadline, resolving).await?)
            }
        };
        let suitable = addresses.into_iter().filter(|address| self.suits(address));
        let mut attempts = Attempts { poller: &poller, under_way: Vec::new() };
        let mut failed = self.unsuitable();
        for address in suitable.take(ATTEMPTS_MAX) {
            let begun = self.begin(&poller, &address, deadline).await;
            match begun {
                Ok(connection) => attempts.under_way.push((address, connection)),
                Err(error) => {
                    failed = named(error, Doing::Dialing, &address);
                    continue;
                }
            }
            let next = now() + ATTEMPT_DELAY;
            let patience = deadline.map_or(next, |deadline| deadline.min(next));
            match attempts.race(Some(patience)).await {
                Raced::Won(connection) => return Ok(connection),
                Raced::Failed(error) => failed = error,
                Raced::Late => {}
            }
            if deadline.is_some_and(|deadline| deadline <= now()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        while !attempts.under_way.is_empty() {
            match attempts.race(deadline).await {
                Raced::Won(connection) => return Ok(connection),
                Raced::Failed(error) => failed = error,
                Raced::Late => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Err(failed)
    }

    fn resolve(&self, host: String, port: u16) -> Resolving {
        match &self.resolver {
            Some(resolver) => resolver(host, port),
            None => Box::pin(resolve(host, port)),
        }
    }

    /// Where the connection is to live, and the dial's timers.
    fn poller(&self) -> io::Result<Arc<Handle>> {
        let poller = match (&self.pollers, Handle::current()) {
            (Some(pollers), _) => pollers.running().ok_or_else(over)?,
            (None, Some(here)) => here,
            (None, None) => Pollers::nearest()?.choose(),
        };
        Ok(poller)
    }

    /// The error where no address suits.
    fn unsuitable(&self) -> io::Error {
        let text = match &self.local {
            Some(local) => {
                format!("it has no address of the family of {local}, where it is dialed from")
            }
            None => "the name has no address".to_owned(),
        };
        io::Error::new(io::ErrorKind::NotFound, text)
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
    async fn begin(
        &self,
        poller: &Arc<Handle>,
        address: &Address,
        deadline: Option<Instant>,
    ) -> io::Result<Connection> {
        let remote = address.to_sock_addr()?;
        let (socket, file) = self.socket(&remote)?;
        let mut retry = UNIX_RETRIES.0;
        let now = || poller.clock().instant();
        let patience = deadline.unwrap_or_else(|| now() + UNIX_PATIENCE);
        let connecting = loop {
            let Err(error) = socket.connect(&remote) else { break false };
            match error.raw_os_error() {
                Some(libc::EINPROGRESS | libc::EINTR) => break true,
                // A Unix listener's backlog is full, and the kernel does not tell when it no longer is.
                Some(libc::EAGAIN) if remote.is_unix() && now() < patience => {
                    let next = now() + retry;
                    Sleep::on(poller.clone(), next.min(patience)).await;
                    retry = (retry * 2).min(UNIX_RETRIES.1);
                }
                Some(libc::EAGAIN) if remote.is_unix() => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                _ => return Err(error),
            }
        };
        let connection = poller.clone().adopt(socket.into(), self.limits, connecting).await?;
        if self.prepare.is_some() {
            connection.control().expose();
        }
        if let Some(file) = file {
            let _ = connection.on_close(move || drop(file));
        }
        Ok(connection)
    }

    fn socket(&self, remote: &SockAddr) -> io::Result<(Socket, Option<SocketFile>)> {
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
        let mut file = None;
        if let Some(local) = &self.local {
            if matches!(local, Address::Tcp(local) if local.port() == 0) {
                tcp::bind_without_port(&socket)?;
            }
            socket.bind(&local.to_sock_addr()?)?;
            if let Address::Unix(path) = local {
                file = Some(SocketFile::made(path)?);
            }
        }
        Ok((socket, file))
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

/// Waits for a future, but not beyond the deadline.
async fn within<T>(
    poller: &Arc<Handle>,
    deadline: Option<Instant>,
    future: impl Future<Output = io::Result<T>> + Unpin,
) -> io::Result<T> {
    match deadline {
        Some(deadline) => Timeout::on(poller.clone(), deadline, future).await?,
        None => future.await,
    }
}

/// Connects that are under way.
struct Attempts<'a> {
    poller: &'a Arc<Handle>,
    under_way: Vec<(Address, Connection)>,
}

/// How a race between them has ended.
#[expect(clippy::large_enum_variant, reason = "it is moved once in a dial")]
enum Raced {
    Won(Connection),
    /// At least one has failed, and is no longer under way.
    Failed(io::Error),
    /// The time was over.
    Late,
}

impl Attempts<'_> {
    /// Waits for the first that is established or fails, until the deadline.
    async fn race(&mut self, deadline: Option<Instant>) -> Raced {
        let mut late = deadline.map(|deadline| Sleep::on(self.poller.clone(), deadline));
        poll_fn(|cx| {
            if let Poll::Ready(raced) = self.poll(cx) {
                return Poll::Ready(raced);
            }
            match &mut late {
                Some(late) => Pin::new(late).poll(cx).map(|()| Raced::Late),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Raced> {
        let mut failed = None;
        let mut index = 0;
        while let Some((address, connection)) = self.under_way.get_mut(index) {
            let error = match connection.writer_mut().poll_connected(cx) {
                Poll::Pending => {
                    index += 1;
                    continue;
                }
                Poll::Ready(Ok(())) if is_self_connected(connection, address) => {
                    io::Error::from_raw_os_error(libc::ECONNREFUSED)
                }
                Poll::Ready(Ok(())) => {
                    if let Address::Tcp(address) = address {
                        connection.control().remember_peer(*address);
                    }
                    return Poll::Ready(Raced::Won(self.under_way.swap_remove(index).1));
                }
                Poll::Ready(Err(error)) => error,
            };
            failed = Some(named(error, Doing::Dialing, address));
            self.under_way.remove(index);
        }
        failed.map_or(Poll::Pending, |error| Poll::Ready(Raced::Failed(error)))
    }
}

/// A TCP socket that dials a local port nobody listens on may be given that very port, and then it is connected to
/// itself. Nobody listens there.
fn is_self_connected(connection: &Connection, dialed: &Address) -> bool {
    let Address::Tcp(dialed) = dialed else { return false };
    match connection.local_addr() {
        // The address may be another one, if "any" was dialed.
        Ok(Address::Tcp(local)) if local.port() == dialed.port() => {
            connection.peer_addr().ok() == Some(Address::Tcp(local))
        }
        _ => false,
    }
}

impl Target {
    fn parse(text: &str) -> io::Result<Target> {
        if text.starts_with("unix:") {
            return text.parse().map(Target::Address);
        }
        if let Some(address) = address::numeric(text) {
            return Ok(Target::Address(address.into()));
        }
        match text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(port))) if !host.is_empty() => {
                Ok(Target::Name { host: host.into(), port })
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{text}` is neither HOST:PORT nor unix:PATH"),
            )),
        }
    }
}
