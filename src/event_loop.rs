//! Servers: an event loop that calls a handler for what its connections receive.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use duopoll_core::Limits;
use socket2::SockRef;

use crate::address::Address;
use crate::admission::{Admission, Admitted, Spread};
use crate::connection::Connection;
use crate::engine::{Engine, EngineReport};
use crate::listener::{Listener, SocketFile};
use crate::poller::{self, Poller};
use crate::pollers::{Balance, PollerOptions, Pollers};
use crate::stats::Stats;

/// Where a server begins: see [`EventLoop::builder`].
#[derive(Debug)]
pub struct EventLoop(());

impl EventLoop {
    /// Options, all with defaults.
    ///
    /// ```no_run
    /// use duopoll::{Connection, EventLoop, Listener};
    /// use std::time::Duration;
    ///
    /// fn main() -> std::io::Result<()> {
    ///     let server = EventLoop::builder()
    ///         .on_request(async |connection: &mut Connection| {
    ///             let len = connection.read_u32().await? as usize;
    ///             let body = connection.next(len).await?;          // not copied
    ///             connection.write(&(len as u32).to_be_bytes())?;  // copied
    ///             connection.push(body);                           // not copied
    ///             connection.flush().await
    ///         })
    ///         .serve(Listener::bind("127.0.0.1:8080")?)?;
    ///     println!("{}", server.engine_report());
    ///     std::thread::park();
    ///     server.shutdown(Duration::from_secs(5));
    ///     Ok(())
    /// }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// Options of a server.
#[derive(Clone, Default)]
pub struct Builder {
    pollers: PollerOptions,
    limits: Limits,
    max_connections: Option<usize>,
    callbacks: Callbacks,
}

/// What is called once in a connection's life.
#[derive(Clone, Default)]
struct Callbacks {
    prepare: Option<Arc<Prepare>>,
    connect: Option<Arc<Connect>>,
    disconnect: Option<Arc<Disconnect>>,
}

type Prepare = dyn Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync;
type Connect = dyn for<'a> Fn(&'a mut Connection) -> LocalFuture<'a, io::Result<()>> + Send + Sync;
type Disconnect = dyn for<'a> Fn(&'a mut Connection) -> LocalFuture<'a, ()> + Send + Sync;
type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

impl Builder {
    /// Which engine the pollers run on. Default: [`Engine::Auto`].
    pub fn engine(mut self, engine: Engine) -> Builder {
        self.pollers = self.pollers.engine(engine);
        self
    }

    /// How many pollers, each a thread. Default: what the machine can run at once.
    pub fn pollers(mut self, pollers: usize) -> Builder {
        self.pollers = self.pollers.count(pollers);
        self
    }

    /// Which poller gets the next connection. Default: each in turn.
    pub fn balance(mut self, balance: Balance) -> Builder {
        self.pollers = self.pollers.balance(balance);
        self
    }

    /// Whether each poller is bound to a processor of its own. Default: no.
    pub fn pinned(mut self, pinned: bool) -> Builder {
        self.pollers = self.pollers.pinned(pinned);
        self
    }

    /// What a connection may hold. Default: see [`Limits`].
    pub fn limits(mut self, limits: Limits) -> Builder {
        self.limits = limits;
        self
    }

    /// How long each wait of a read may take; see [`Control::set_read_timeout`](crate::Control::set_read_timeout).
    /// The wait between two requests is not a read: see [`idle_timeout`](Builder::idle_timeout). Default: for ever.
    pub fn read_timeout(mut self, timeout: Duration) -> Builder {
        self.limits.read_timeout = Some(timeout);
        self
    }

    /// How long each wait of a flush may take; see
    /// [`Control::set_write_timeout`](crate::Control::set_write_timeout). Default: for ever.
    pub fn write_timeout(mut self, timeout: Duration) -> Builder {
        self.limits.write_timeout = Some(timeout);
        self
    }

    /// How long no byte may move in either direction before a connection is ended. Default: for ever.
    pub fn idle_timeout(mut self, timeout: Duration) -> Builder {
        self.limits.idle_timeout = Some(timeout);
        self
    }

    /// How many connections may be open at once, on all pollers. Those beyond wait to be accepted. Default: no limit
    /// but the process's descriptors.
    pub fn max_connections(mut self, max: usize) -> Builder {
        self.max_connections = Some(max);
        self
    }

    /// Called first in a connection's life, on a poller's thread, before anything is received: for socket options.
    /// An error closes the connection, and nothing else is called for it.
    pub fn on_prepare<F>(mut self, prepare: F) -> Builder
    where
        F: Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync + 'static,
    {
        self.callbacks.prepare = Some(Arc::new(prepare));
        self
    }

    /// Called once, before the first request: it may send, receive, and [set the state](Connection::set_state) that the
    /// connection keeps. No request is handled until it returns. An error ends the connection, as one of the handler
    /// does.
    pub fn on_connect<F>(mut self, connect: F) -> Builder
    where
        F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    {
        let connect = Arc::new(connect);
        self.callbacks.connect = Some(Arc::new(move |connection| {
            let connect = connect.clone();
            Box::pin(async move { connect(connection).await })
        }));
        self
    }

    /// Called once, last, when the connection has ended, for whatever reason: the peer's end, a reset, a timeout, an
    /// error or a panic of a handler, or the server's shutdown. What had arrived can still be read. Not called
    /// if `on_prepare` has refused the connection, and not for a connection whose handler has outlived the
    /// server's grace.
    pub fn on_disconnect<F>(mut self, disconnect: F) -> Builder
    where
        F: AsyncFn(&mut Connection) + Send + Sync + 'static,
    {
        let disconnect = Arc::new(disconnect);
        self.callbacks.disconnect = Some(Arc::new(move |connection| {
            let disconnect = disconnect.clone();
            Box::pin(async move { disconnect(connection).await })
        }));
        self
    }

    /// The handler: called when bytes have arrived that it has not seen, for one connection never twice at a time.
    ///
    /// It runs on the connection's poller and need not be `Send`; while it waits, others run. It may take one
    /// request or all that have arrived; what it leaves is there at its next call. If it takes nothing, it is called
    /// again only when more has come. What it has written and not flushed is flushed when it returns.
    ///
    /// An error ends the connection, as a panic does; both are counted, and the error is logged at debug level.
    /// The end of the stream while the handler waits for more is such an error,
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof); between two calls it just ends the connection.
    pub fn on_request<F>(self, handler: F) -> Service<F>
    where
        F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    {
        Service { builder: self, handler }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("pollers", &self.pollers)
            .field("limits", &self.limits)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

/// A server that is ready to be started.
#[derive(Debug)]
#[must_use = "a service does nothing until it is served"]
pub struct Service<F> {
    builder: Builder,
    handler: F,
}

impl<F> Service<F>
where
    F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    /// Starts the pollers, and serves what the listener accepts. Returns at once; the server runs until it is shut
    /// down or dropped.
    ///
    /// # Errors
    /// What the engine says if a poller cannot be started: for [`Engine::Uring`] the reason why there is no
    /// io_uring. [`InvalidInput`](io::ErrorKind::InvalidInput) for 0 pollers, or if `DUOPOLL_ENGINE` names no
    /// engine.
    pub fn serve(self, listener: Listener) -> io::Result<Server> {
        let Builder { pollers, limits, max_connections, callbacks } = self.builder;
        let address = listener.local_addr()?;
        let pollers = pollers.start()?;
        // One socket, or with SO_REUSEPORT one for each poller.
        let more = (1..pollers.count()).map_while(|_| listener.another());
        let more = more.collect::<io::Result<Vec<_>>>()?;
        let (socket, file) = listener.into_parts();
        // Whoever bound it may have left it blocking, and a poller must never block.
        SockRef::from(&socket).set_nonblocking(true)?;

        let service = Arc::new(Running { limits, callbacks, handler: self.handler });
        let spread = if more.is_empty() { Spread::ByBalance } else { Spread::Stay };
        let admission = Admission::new(
            pollers.clone(),
            spread,
            max_connections,
            move |poller, socket, admitted| start(poller, socket, admitted, service.clone()),
        );
        let server = Server { pollers, address, _file: file };
        let sockets = [socket].into_iter().chain(more);
        for (handle, socket) in server.pollers.handles().iter().zip(sockets) {
            let acceptor = admission.clone().acceptor();
            let listening = handle.ask(move |poller| poller.listen(socket, acceptor));
            listening.unwrap_or_else(|| Err(io::Error::other("the poller has ended")))?;
        }
        Ok(server)
    }
}

/// What all connections of a server share.
struct Running<F> {
    limits: Limits,
    callbacks: Callbacks,
    handler: F,
}

/// Takes a connection on, and starts its task.
fn start<F>(poller: &mut Poller, socket: OwnedFd, admitted: Admitted, service: Arc<Running<F>>)
where
    F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    let prepared = match &service.callbacks.prepare {
        Some(prepare) => prepare(socket.as_fd()),
        None => Ok(()),
    };
    match prepared.and_then(|()| poller.open(socket, service.limits)) {
        Ok(connection) => poller.spawn(async move {
            live(connection, &service).await;
            drop(admitted);
        }),
        Err(error) => log::debug!("a connection was accepted and is not served: {error}"),
    }
}

/// The life of a connection.
async fn live<F>(mut connection: Connection, service: &Running<F>)
where
    F: AsyncFn(&mut Connection) -> io::Result<()>,
{
    match caught(handle(&mut connection, service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            poller::count_handler_error();
            log::debug!("a handler has failed: {error}");
        }
        // The panic hook has reported it.
        Err(_) => poller::count_handler_panic(),
    }
    if let Some(disconnect) = &service.callbacks.disconnect {
        disconnect(&mut connection).await;
    }
}

/// Handles requests until the connection ends.
async fn handle<F>(connection: &mut Connection, service: &Running<F>) -> io::Result<()>
where
    F: AsyncFn(&mut Connection) -> io::Result<()>,
{
    if let Some(connect) = &service.callbacks.connect {
        connect(connection).await?;
        flush_staged(connection).await?;
    }
    // Bytes that the handler has seen and left.
    let mut seen = 0;
    while let Ok(true) = poll_fn(|cx| connection.reader().poll_request(cx, seen)).await {
        poller::count_request();
        let consumed = connection.reader().consumed();
        (service.handler)(connection).await?;
        flush_staged(connection).await?;
        let idle = connection.reader().consumed() == consumed;
        seen = if idle { connection.input().len() } else { 0 };
    }
    Ok(())
}

async fn flush_staged(connection: &mut Connection) -> io::Result<()> {
    if connection.writer().staged_len() > 0 { connection.flush().await } else { Ok(()) }
}

/// Runs a future; a panic in it becomes an error.
async fn caught<T>(future: impl Future<Output = T>) -> thread::Result<T> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        // A future that has panicked is not polled again, and what it was working on ends with it.
        match panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}

/// A server that runs. Dropping it shuts it down without grace.
#[derive(Debug)]
pub struct Server {
    pollers: Pollers,
    address: Address,
    /// Removed when the server is gone.
    _file: Option<SocketFile>,
}

impl Server {
    /// The address it listens at.
    pub fn local_addr(&self) -> &Address {
        &self.address
    }

    /// How many pollers it has.
    pub fn pollers(&self) -> usize {
        self.pollers.count()
    }

    /// What the first poller runs on, and why. With [`Engine::Auto`] a poller falls back on its own, so the others
    /// may differ: see [`engine_reports`](Server::engine_reports).
    pub fn engine_report(&self) -> &EngineReport {
        self.pollers.handles()[0].report()
    }

    /// What each poller runs on, and why.
    pub fn engine_reports(&self) -> impl Iterator<Item = &EngineReport> {
        self.pollers.engine_reports()
    }

    /// The counters of all pollers, added up. Asks each of them, so it is not for a hot path. Still works after
    /// the shutdown.
    pub fn stats(&self) -> Stats {
        self.pollers.stats()
    }

    /// The counters of each poller. Asks them, so it is not for a hot path.
    pub fn stats_of_each(&self) -> Vec<Stats> {
        self.pollers.stats_of_each()
    }

    /// Stops accepting, lets connections finish their requests, and closes those that are idle. When the grace is
    /// over the rest is closed by force: returns how many that were. Blocks for as long. Harmless if it was
    /// done before. Not to be called from a handler, which would wait for itself.
    pub fn shutdown(&self, grace: Duration) -> usize {
        // First everywhere, so that no poller accepts for another that has ended.
        let pollers = self.pollers.handles();
        for poller in pollers {
            poller.ask(|poller| poller.unlisten());
        }
        let deadline = Instant::now() + grace;
        let ending: Vec<_> = pollers.iter().map(|poller| poller.end(deadline)).collect();
        let forced = ending.iter().map(|answer| answer.recv().unwrap_or(0)).sum();
        for poller in pollers {
            poller.join();
        }
        forced
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}
