//! A listening socket.

mod ahead;
mod socket_file;

use std::any::Any;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use duopoll_core::{Limits, on_poller_thread};
use socket2::{Domain, SockRef, Socket, Type};

use crate::address::{Address, IntoAddress};
use crate::connection::Connection;
use crate::listener::ahead::Ahead;
pub(crate) use crate::listener::socket_file::SocketFile;
use crate::listener::socket_file::TakingOver;
use crate::named::{Doing, named};
use crate::pollers::Pollers;
use crate::tcp::{Keepalive, TcpOptions, not_tcp};

/// Connections that the kernel may hold for us until they are accepted, unless something else is asked for. The kernel
/// cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;

/// A listening socket: TCP over IPv4 or IPv6, or a Unix socket.
///
/// The socket file that binding to a Unix path has made is removed when the listener, or the server it was given
/// to, is gone, unless another file has taken its place meanwhile.
///
/// Give it to a server, or [`accept`](Listener::accept) from it. When it is dropped its address is free: a listener that has
/// accepted waits for its poller to let go, but on a poller's own thread, where that happens when the turn ends.
#[derive(Debug)]
#[must_use = "a listener that is dropped does not listen"]
pub struct Listener {
    /// Dropped first: the address is free when the socket is closed here, too.
    ahead: Begun,
    socket: OwnedFd,
    /// Others at the same address, each with a queue of its own, which somebody else has bound.
    others: Vec<OwnedFd>,
    file: Option<SocketFile>,
    options: ListenerOptions,
    /// Where accepted connections live; none: on the global ones.
    pollers: Option<Pollers>,
    limits: Limits,
}

/// A socket that listens for a server, and whether its file is the server's.
pub(crate) type Listening = (OwnedFd, bool);

/// What it has accepted ahead; set by the first accept.
#[derive(Debug, Default)]
pub(crate) struct Begun(Mutex<Option<Arc<Ahead>>>);

/// How a listener is bound: see [`Listener::options`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenerOptions {
    backlog: Option<u32>,
    reuse_port: bool,
    only_v6: Option<bool>,
    mode: Option<u32>,
    takes_over_stale: bool,
    tcp: TcpOptions,
}

impl Listener {
    /// Listens at an address, for instance `"127.0.0.1:6380"`, `"[::1]:0"` or `"unix:/run/server.sock"`.
    ///
    /// TCP listeners have `SO_REUSEADDR`, so that a restart finds its port, and `TCP_NODELAY`, which accepted
    /// connections inherit.
    ///
    /// # Errors
    /// What socket(2), bind(2) and listen(2) say, for instance `EADDRINUSE`, also for some milliseconds after a process was killed
    /// that had listened there on io_uring: the kernel takes its ring down behind it;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a text that is no address.
    pub fn bind(address: impl IntoAddress) -> io::Result<Listener> {
        Listener::options().bind(address)
    }

    /// Options for binding, all with defaults.
    pub fn options() -> ListenerOptions {
        ListenerOptions::default()
    }

    /// The address it listens at, with the port that was chosen if 0 was asked for.
    ///
    /// # Errors
    /// `ENOBUFS` if the kernel has no memory.
    pub fn local_addr(&self) -> io::Result<Address> {
        Address::from_sock_addr(&SockRef::from(&self.socket).local_addr()?)
    }

    fn new(socket: OwnedFd, file: Option<SocketFile>, options: ListenerOptions) -> Listener {
        // Connections would inherit it, and pollers wait for them.
        duopoll_core::syscalls::close_at_once(socket.as_fd());
        let (pollers, limits, ahead) = (None, Limits::default(), Begun::default());
        Listener { socket, others: Vec::new(), file, options, pollers, limits, ahead }
    }

    /// That of another process, with all sockets that it has at its address.
    pub(crate) fn taken_over(
        socket: OwnedFd,
        others: Vec<OwnedFd>,
        file: Option<SocketFile>,
    ) -> Listener {
        Listener { others, ..Listener::new(socket, file, ListenerOptions::default()) }
    }

    /// More sockets that listen at the same address, for so many more pollers; none unless it was bound with `reuse_port`, or
    /// taken over with more.
    pub(crate) fn others(&mut self, count: usize) -> io::Result<Vec<OwnedFd>> {
        if !self.options.reuse_port {
            return Ok(mem::take(&mut self.others));
        }
        let address = self.local_addr()?;
        let again = |_| self.options.bind(&address)?.socket.try_clone();
        (0..count).map(again).collect()
    }

    /// The pollers that connections live on which [`accept`](Listener::accept) gives. Default: those [of the
    /// thread](Pollers::current) that accepts first, elsewhere the [global ones](Pollers::global). A server has its own.
    pub fn pollers(mut self, pollers: Pollers) -> Listener {
        self.pollers = Some(pollers);
        self
    }

    /// What connections may hold and wait for which [`accept`](Listener::accept) gives. A server has its own limits. Timeouts for
    /// reading and for idle connections end a wait for the peer, whoever waits: none for libraries that wait all the time, as hyper does.
    pub fn limits(mut self, limits: Limits) -> Listener {
        self.limits = limits;
        self
    }

    /// The next connection. Several may wait at once.
    ///
    /// The first call begins to accept; from then on up to 128 connections are accepted ahead, and those that the
    /// engine has accepted by the time that it is told to stop: up to 64. Nothing of them is received before they are
    /// asked for. Dropping the future loses none: the next call gets it, and so does a server that the listener is given
    /// to. If the poller that listens breaks, another one goes on.
    ///
    /// # Errors
    /// What the engine says if it cannot listen, or cannot take a connection on; the next call tries again. A shortage of
    /// descriptors or memory is no error: accepting goes on when it is over. [`NotConnected`](io::ErrorKind::NotConnected)
    /// when its pollers have ended, which is final.
    pub async fn accept(&self) -> io::Result<Connection> {
        loop {
            let ahead = self.ahead()?;
            if let Some(taken) = ahead.take().await {
                return taken;
            }
        }
    }

    fn ahead(&self) -> io::Result<Arc<Ahead>> {
        let mut ahead = lock(&self.ahead.0);
        if let Some(ahead) = ahead.as_ref().filter(|ahead| !ahead.has_ended()) {
            return Ok(ahead.clone());
        }
        if !self.others.is_empty() {
            let text = "a listener that was taken over with several sockets is for a server";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let pollers = self.pollers.clone().map_or_else(Pollers::nearest, Ok)?;
        let socket = self.socket.try_clone()?;
        // Whoever bound it may have left it blocking, and a poller must never block.
        SockRef::from(&socket).set_nonblocking(true)?;
        Ok(ahead.insert(Ahead::begin(socket, pollers, self.limits)?).clone())
    }

    pub(crate) fn into_parts(self) -> (OwnedFd, Option<SocketFile>, Begun) {
        (self.socket, self.file, self.ahead)
    }
}

impl Begun {
    /// Gives what was accepted ahead to whoever goes on in its place. `done` is dropped when nothing more is accepted for this
    /// one.
    pub(crate) fn hand_over(
        self,
        heir: impl Fn(OwnedFd) + Send + Sync + 'static,
        done: Box<dyn Any + Send>,
    ) {
        if let Some(ahead) = lock(&self.0).take() {
            ahead.hand_over(Arc::new(heir), done);
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(ahead) = lock(&self.0).take() else { return };
        let (done, gone) = mpsc::channel::<()>();
        ahead.stop(Box::new(done));
        // No poller waits for another, which may wait for it.
        if !on_poller_thread() {
            let _ = gone.recv();
        }
    }
}

impl ListenerOptions {
    /// Connections that the kernel may hold until they are accepted. Default: what `net.core.somaxconn` allows.
    pub fn backlog(mut self, backlog: u32) -> ListenerOptions {
        self.backlog = Some(backlog);
        self
    }

    /// `SO_REUSEPORT`, for TCP: several sockets may listen at the address, and the kernel spreads the connections over them
    /// by a hash of their addresses. A server then has one for each poller, and no poller hands connections
    /// to another. With few clients some pollers may get none. Default: off.
    pub fn reuse_port(mut self, reuse: bool) -> ListenerOptions {
        self.reuse_port = reuse;
        self
    }

    /// Whether an IPv6 listener takes IPv6 only, or IPv4 as well, as mapped addresses. Default: what
    /// `net.ipv6.bindv6only` says, usually both.
    pub fn only_v6(mut self, only: bool) -> ListenerOptions {
        self.only_v6 = Some(only);
        self
    }

    /// The permissions of a Unix socket's file, which say who may connect: `0o660` for instance. Default: what the umask
    /// leaves.
    pub fn mode(mut self, mode: u32) -> ListenerOptions {
        self.mode = Some(mode);
        self
    }

    /// Whether a Unix socket's file is taken over at which nobody listens any more, as a server leaves it that was killed.
    /// Nobody listens if a connect is refused. Those who do this in one directory take turns by a lock on it (`flock(2)`), for
    /// which they wait a tenth of a second at most. Default: no, and the bind fails.
    pub fn take_over_stale(mut self, take: bool) -> ListenerOptions {
        self.takes_over_stale = take;
        self
    }

    /// TCP keepalive for the connections, which inherit it. Default: none.
    pub fn keepalive(mut self, keepalive: Keepalive) -> ListenerOptions {
        self.tcp.keepalive = Some(keepalive);
        self
    }

    /// How long sent bytes may stay unacknowledged before a connection ends with `ETIMEDOUT` (`TCP_USER_TIMEOUT`), in
    /// milliseconds. Connections inherit it. Default: the kernel's, about a quarter of an hour.
    pub fn user_timeout(mut self, timeout: Duration) -> ListenerOptions {
        self.tcp.user_timeout = Some(timeout);
        self
    }

    /// Listens at an address; see [`Listener::bind`].
    ///
    /// # Errors
    /// As for `Listener::bind`; [`Unsupported`](io::ErrorKind::Unsupported) for `reuse_port`, `keepalive` or
    /// `user_timeout` on a Unix socket, and for `mode` or `take_over_stale` on one that is no file.
    pub fn bind(self, address: impl IntoAddress) -> io::Result<Listener> {
        let address = address.into_address()?;
        self.bind_to(&address).map_err(|error| named(error, Doing::Listening, &address))
    }

    fn bind_to(self, address: &Address) -> io::Result<Listener> {
        let socket_address = address.to_sock_addr()?;
        let domain = Domain::from(i32::from(socket_address.family()));
        self.check(address)?;
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        if let Address::Tcp(tcp) = address {
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(self.reuse_port)?;
            socket.set_tcp_nodelay(true)?;
            self.tcp.apply(&socket)?;
            if let (true, Some(only)) = (tcp.is_ipv6(), self.only_v6) {
                socket.set_only_v6(only)?;
            }
        }
        // Until it listens: one that is bound and does not listen yet refuses, and looks stale to others.
        let taking_over = match address {
            Address::Unix(path) if self.takes_over_stale => Some((TakingOver::begin(path), path)),
            _ => None,
        };
        match (socket.bind(&socket_address), &taking_over) {
            (Err(error), Some((taking_over, path))) if error.kind() == io::ErrorKind::AddrInUse => {
                if !taking_over.remove_stale(path)? {
                    return Err(error);
                }
                socket.bind(&socket_address)?;
            }
            (bound, _) => bound?,
        }
        let file = match address {
            Address::Unix(path) => Some(SocketFile::made(path)?),
            _ => None,
        };
        // Nobody can connect before it listens.
        if let (Some(file), Some(mode)) = (&file, self.mode) {
            file.set_mode(mode)?;
        }
        let backlog = self.backlog.unwrap_or(BACKLOG);
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(Listener::new(socket.into(), file, self))
    }

    /// Whether a socket of the kind has what was asked for.
    fn check(&self, address: &Address) -> io::Result<()> {
        let unsupported = |message| Err(io::Error::new(io::ErrorKind::Unsupported, message));
        let is_tcp = matches!(address, Address::Tcp(_));
        if !is_tcp && self.reuse_port {
            return unsupported("a Unix socket cannot share its address (SO_REUSEPORT)");
        }
        if !is_tcp && !self.tcp.is_default() {
            return Err(not_tcp("keepalive or user timeout"));
        }
        let is_file = matches!(address, Address::Unix(_));
        if !is_file && (self.mode.is_some() || self.takes_over_stale) {
            return unsupported("only a Unix socket with a path is a file");
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes over a listener that something else has bound. Its connections have `TCP_NODELAY`, as those of others.
impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Listener {
        if let Err(error) = SockRef::from(&listener).set_tcp_nodelay(true) {
            log::warn!("connections of a listener are without TCP_NODELAY: {error}");
        }
        Listener::new(listener.into(), None, ListenerOptions::default())
    }
}

/// Takes over a listening socket of either kind, as systemd gives it. A socket file is left alone.
///
/// # Errors
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if it does not listen for streams; `ENOTSOCK` if it is no socket.
impl TryFrom<OwnedFd> for Listener {
    type Error = io::Error;

    fn try_from(fd: OwnedFd) -> io::Result<Listener> {
        let socket = SockRef::from(&fd);
        if !socket.is_listener()? || socket.r#type()? != Type::STREAM {
            let text = "this socket does not listen for streams";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        match socket.domain()? {
            Domain::UNIX => Ok(Listener::from(std::os::unix::net::UnixListener::from(fd))),
            _ => Ok(Listener::from(std::net::TcpListener::from(fd))),
        }
    }
}

/// Takes over a listener that something else has bound. Its socket file is left alone.
impl From<std::os::unix::net::UnixListener> for Listener {
    fn from(listener: std::os::unix::net::UnixListener) -> Listener {
        Listener::new(listener.into(), None, ListenerOptions::default())
    }
}
