//! A listening socket.

use std::collections::VecDeque;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use duopoll_core::{Group, Limits, Token};
use socket2::{Domain, SockRef, Socket, Type};

use crate::address::{Address, IntoAddress};
use crate::connection::Connection;
use crate::poller::{Acceptor, Handle};
use crate::pollers::Pollers;
use crate::tcp::{Keepalive, TcpOptions, not_tcp};

/// Connections that the kernel may hold for us until they are accepted, unless something else is asked for. The kernel
/// cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;

/// A listening socket: TCP over IPv4 or IPv6, or a Unix socket.
///
/// The socket file that binding to a Unix path has made is removed when the listener, or the server it was given
/// to, is gone.
///
/// Give it to a server, or [`accept`](Listener::accept) from it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    file: Option<SocketFile>,
    options: ListenerOptions,
    /// Where accepted connections live; none: on the global ones.
    pollers: Option<Pollers>,
    limits: Limits,
    /// Set by the first accept.
    accepting: Mutex<Option<Arc<Accepting>>>,
}

/// How a listener is bound: see [`Listener::options`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenerOptions {
    backlog: Option<u32>,
    reuse_port: bool,
    only_v6: Option<bool>,
    tcp: TcpOptions,
}

/// Accepted sockets that wait for somebody to take them, at most; then the kernel's backlog fills.
const WAITING_MAX: usize = 128;

/// A listener that accepts by itself.
#[derive(Debug)]
struct Accepting {
    /// Kept so that they run.
    pollers: Pollers,
    handle: Arc<Handle>,
    token: Token,
    waiting: Arc<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    state: Mutex<WaitingState>,
}

#[derive(Debug, Default)]
struct WaitingState {
    sockets: VecDeque<OwnedFd>,
    wakers: Vec<Waker>,
    paused: bool,
    /// The poller has ended: nothing more comes.
    over: bool,
}

/// Where the sockets come from: dropped with the poller's end of it.
struct Source(Arc<Waiting>);

/// A socket file, removed when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens at an address, for instance `"127.0.0.1:6380"`, `"[::1]:0"` or `"unix:/run/server.sock"`.
    ///
    /// TCP listeners have `SO_REUSEADDR`, so that a restart finds its port, and `TCP_NODELAY`, which accepted
    /// connections inherit.
    ///
    /// # Errors
    /// What socket(2), bind(2) and listen(2) say, for instance `EADDRINUSE`;
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
        let (pollers, limits, accepting) = (None, Limits::default(), Mutex::new(None));
        Listener { socket, file, options, pollers, limits, accepting }
    }

    /// Another socket that listens at the same address, for another poller; none unless it was bound with
    /// `reuse_port`.
    pub(crate) fn another(&self) -> Option<io::Result<OwnedFd>> {
        let again = |address: Address| Ok(self.options.bind(&address)?.socket);
        self.options.reuse_port.then(|| self.local_addr().and_then(again))
    }

    /// The pollers that connections live on which [`accept`](Listener::accept) gives. Default: the [global
    /// ones](Pollers::global). A server has its own.
    pub fn pollers(mut self, pollers: Pollers) -> Listener {
        self.pollers = Some(pollers);
        self
    }

    /// What connections may hold and wait for which [`accept`](Listener::accept) gives. A server has its own limits.
    pub fn limits(mut self, limits: Limits) -> Listener {
        self.limits = limits;
        self
    }

    /// The next connection. Several may wait at once.
    ///
    /// The first call begins to accept; from then on up to 128 connections are accepted ahead. Dropping the future
    /// loses none.
    ///
    /// # Errors
    /// What the engine says if it cannot listen, at the first call. A shortage of descriptors or memory is no
    /// error: accepting goes on when it is over.
    pub async fn accept(&self) -> io::Result<Connection> {
        loop {
            let accepting = self.accepting()?;
            if let Some(socket) = poll_fn(|cx| accepting.poll_take(cx)).await {
                return accepting.pollers.pick().adopt(socket, self.limits, false).await;
            }
            // Another poller takes over, if there is one.
            let mut current = lock(&self.accepting);
            if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &accepting)) {
                *current = None;
            }
        }
    }

    fn accepting(&self) -> io::Result<Arc<Accepting>> {
        let mut accepting = lock(&self.accepting);
        if let Some(accepting) = &*accepting {
            return Ok(accepting.clone());
        }
        let pollers = self.pollers.clone().map_or_else(Pollers::global, Ok)?;
        let handle = pollers.pick();
        let socket = self.socket.try_clone()?;
        // Whoever bound it may have left it blocking, and a poller must never block.
        SockRef::from(&socket).set_nonblocking(true)?;
        let waiting = Arc::new(Waiting::default());
        let source = Source(waiting.clone());
        let acceptor: Acceptor = Arc::new(move |poller, listener, socket| {
            if source.0.put(socket) {
                poller.pause_listener(listener);
            }
        });
        let token = handle
            .ask(move |poller| poller.listen(socket, Group::default(), acceptor))
            .unwrap_or_else(|| Err(handle.unanswered()))?;
        Ok(accepting.insert(Arc::new(Accepting { pollers, handle, token, waiting })).clone())
    }

    pub(crate) fn into_parts(self) -> (OwnedFd, Option<SocketFile>) {
        (self.socket, self.file)
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
    /// `user_timeout` on a Unix socket.
    pub fn bind(self, address: impl IntoAddress) -> io::Result<Listener> {
        let address = address.into_address()?;
        let socket_address = address.to_sock_addr()?;
        let domain = Domain::from(i32::from(socket_address.family()));
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        match &address {
            Address::Tcp(tcp) => {
                socket.set_reuse_address(true)?;
                socket.set_reuse_port(self.reuse_port)?;
                socket.set_tcp_nodelay(true)?;
                self.tcp.apply(&socket)?;
                if let (true, Some(only)) = (tcp.is_ipv6(), self.only_v6) {
                    socket.set_only_v6(only)?;
                }
            }
            _ if self.reuse_port => {
                let message = "a Unix socket cannot share its address (SO_REUSEPORT)";
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
            _ if !self.tcp.is_default() => return Err(not_tcp("keepalive or user timeout")),
            _ => {}
        }
        socket.bind(&socket_address)?;
        let file = match address {
            Address::Unix(path) => Some(SocketFile(path)),
            _ => None,
        };
        let backlog = self.backlog.unwrap_or(BACKLOG);
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(Listener::new(socket.into(), file, self))
    }
}

impl Accepting {
    /// The next socket; none if there will never be one.
    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<OwnedFd>> {
        let mut state = lock(&self.waiting.state);
        let Some(socket) = state.sockets.pop_front() else {
            if state.over {
                return Poll::Ready(None);
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.wakers.push(cx.waker().clone());
            }
            return Poll::Pending;
        };
        let resume = state.sockets.len() <= WAITING_MAX / 2 && std::mem::take(&mut state.paused);
        drop(state);
        if resume {
            let token = self.token;
            self.handle.call(move |poller| poller.resume_listener(token));
        }
        Poll::Ready(Some(socket))
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        let token = self.token;
        self.handle.call(move |poller| poller.stop_listening(token));
    }
}

impl Waiting {
    /// Keeps a socket until somebody takes it. Says whether to pause.
    fn put(&self, socket: OwnedFd) -> bool {
        let mut state = lock(&self.state);
        state.sockets.push_back(socket);
        // One that was on its way may still come when the listener is paused.
        let pause = state.sockets.len() >= WAITING_MAX;
        state.paused |= pause;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wake_all(wakers);
        pause
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let wakers = {
            let mut state = lock(&self.0.state);
            state.over = true;
            std::mem::take(&mut state.wakers)
        };
        wake_all(wakers);
    }
}

/// Each is told, whatever another one's waker does.
fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        duopoll_core::contain(|| waker.wake());
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

/// Takes over a listener that something else has bound.
impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Listener {
        Listener::new(listener.into(), None, ListenerOptions::default())
    }
}

/// Takes over a listener that something else has bound. Its socket file is left alone.
impl From<std::os::unix::net::UnixListener> for Listener {
    fn from(listener: std::os::unix::net::UnixListener) -> Listener {
        Listener::new(listener.into(), None, ListenerOptions::default())
    }
}
