//! Servers: an event loop that calls a handler for what its connections receive.

mod connection_limit;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{self, AssertUnwindSafe};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use duopoll_core::{Group, Limits, Token};
#[cfg(feature = "uring")]
use duopoll_uring::Features;
use futures_channel::oneshot;
use pin_project_lite::pin_project;
use socket2::SockRef;

use crate::address::Address;
use crate::blocking::Blocking;
use crate::connection::Connection;
use crate::engine::{Engine, EngineReport};
use crate::listener::{Listener, SocketFile};
use crate::poller::{Handle, Poller};
use crate::pollers::{Balance, PollerOptions, Pollers};
use crate::server::connection_limit::{ConnectionLimit, Permit, Placement};
use crate::stats::{self, Stats};

/// Longer than any grace, and short enough to be added to the time of day.
const GRACE_MAX: Duration = Duration::from_secs(1 << 32);

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
    shared: Option<Pollers>,
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

    /// What may be used of io_uring; see [`PollerOptions::uring`].
    #[cfg(feature = "uring")]
    pub fn uring(mut self, features: Features) -> Builder {
        self.pollers = self.pollers.uring(features);
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

    /// The pollers to run on, with whatever else lives on them. Default: pollers of the server's own, for which the options
    /// above count. They end with the server, shared ones do not.
    pub fn on(mut self, pollers: Pollers) -> Builder {
        self.shared = Some(pollers);
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

    /// Pieces of at least so many bytes are sent without a copy; see
    /// [`Control::set_zerocopy`](crate::Control::set_zerocopy). Default: none.
    #[cfg(feature = "zerocopy")]
    pub fn zerocopy(mut self, bytes: usize) -> Builder {
        self.limits.zerocopy_bytes = Some(bytes);
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
    pub fn on_request<F>(self, handler: F) -> Service
    where
        F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    {
        let running =
            Arc::new(Running { callbacks: self.callbacks.clone(), handler: AsyncHandler(handler) });
        Service::new(self, move |poller, connection, permit| {
            poller.spawn(live(connection, running.clone(), permit));
        })
    }

    /// A handler that blocks, as [`on_request`](Builder::on_request) otherwise. Each call is a [`Job`] of its own, given
    /// to `spawn`, which must run it on another thread than a poller's: that of a thread pool. The connection
    /// is away from its poller's tasks meanwhile, while its bytes still move. The other callbacks run on the
    /// poller.
    ///
    /// A job that is dropped without being run closes its connection, and `on_disconnect` is not called for it.
    ///
    /// ```no_run
    /// # use duopoll::{Blocking, EventLoop, Listener};
    /// # use std::io::{BufRead, Write};
    /// let server = EventLoop::builder()
    ///     // A thread for each request; a pool is better.
    ///     .on_request_blocking(|job| { std::thread::spawn(job); }, |connection: &mut Blocking| {
    ///         let mut line = String::new();
    ///         connection.read_line(&mut line)?;
    ///         connection.write_all(line.to_uppercase().as_bytes())
    ///     })
    ///     .serve(Listener::bind("127.0.0.1:8080")?)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn on_request_blocking<S, F>(self, spawn: S, handler: F) -> Service
    where
        S: Fn(Job) + Send + Sync + 'static,
        F: Fn(&mut Blocking) -> io::Result<()> + Send + Sync + 'static,
    {
        let handler = BlockingHandler { spawn, handler: Arc::new(handler) };
        let running = Arc::new(Running { callbacks: self.callbacks.clone(), handler });
        Service::new(self, move |poller, connection, permit| {
            poller.spawn(live(connection, running.clone(), permit));
        })
    }

    /// A handler for a connection as a whole, on an executor of the user's own: `spawn` is given its future, which is
    /// `Send`, for instance for `tokio::spawn`. It serves requests in a loop around
    /// [`next_request`](Connection::next_request), and its end closes the connection. Every wait then wakes another
    /// thread.
    ///
    /// `on_connect` and `on_disconnect` have no place here, and are an error when the service is served. Requests, errors
    /// and panics are not counted.
    pub fn on_connection<S, F, T>(self, spawn: S, handler: F) -> Service
    where
        S: Fn(Task) + Send + Sync + 'static,
        F: Fn(Connection) -> T + Send + Sync + 'static,
        T: Future<Output = io::Result<()>> + Send + 'static,
    {
        let refused = self.callbacks.connect.is_some() || self.callbacks.disconnect.is_some();
        let mut service = Service::new(self, move |_, connection, permit| {
            connection.share();
            let served = handler(connection);
            spawn(Box::pin(async move {
                if let Err(error) = served.await {
                    log::debug!("a handler has failed: {error}");
                }
                drop(permit);
            }));
        });
        if refused {
            service.refused = Some("on_connect and on_disconnect do not go with on_connection");
        }
        service
    }
}

/// A call of a handler that blocks; see [`Builder::on_request_blocking`].
pub type Job = Box<dyn FnOnce() + Send>;

/// The life of a connection; see [`Builder::on_connection`].
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

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
#[must_use = "a service does nothing until it is served"]
pub struct Service {
    builder: Builder,
    begin: Box<Begin>,
    /// Why it cannot be served.
    refused: Option<&'static str>,
}

/// Starts what serves a connection.
type Begin = dyn Fn(&mut Poller, Connection, Permit) + Send + Sync;

impl Service {
    fn new(
        builder: Builder,
        begin: impl Fn(&mut Poller, Connection, Permit) + Send + Sync + 'static,
    ) -> Service {
        Service { builder, begin: Box::new(begin), refused: None }
    }

    /// Starts the pollers, and serves what the listener accepts. Returns at once; the server runs until it is shut
    /// down or dropped. [`Server::listen`] adds further listeners.
    ///
    /// # Errors
    /// What the engine says if a poller cannot be started: for [`Engine::Uring`] the reason why there is no
    /// io_uring. [`InvalidInput`](io::ErrorKind::InvalidInput) for 0 pollers, if `DUOPOLL_ENGINE` names no
    /// engine, and for options that contradict each other. [`Unsupported`](io::ErrorKind::Unsupported) if something is
    /// to be sent without a copy and an engine cannot do it on this kernel.
    pub fn serve(self, listener: Listener) -> io::Result<Server> {
        let server = self.server(&listener, PollerOptions::start)?;
        server.listen(listener)?;
        Ok(server)
    }

    /// As [`serve`](Service::serve), with the calling thread as the first of the pollers: returns when the server is over.
    /// `until` is called when it listens, and what it returns runs as a task on this poller. When that is ready the
    /// server is shut down, with the grace that it gives; returns how many connections were then closed by force.
    ///
    /// With one poller the process needs no other thread, but one for the shutdown. The kernel then counts no references
    /// to the descriptors of system calls, which is 2 % of a small echo on epoll. Where pollers are
    /// [pinned](Builder::pinned), the thread stays bound to its processor afterwards.
    ///
    /// ```no_run
    /// # use duopoll::{Connection, EventLoop, Listener};
    /// EventLoop::builder()
    ///     .pollers(1)
    ///     .on_request(async |connection: &mut Connection| {
    ///         let (reader, writer) = connection.split();
    ///         writer.append(reader.buffer());
    ///         writer.flush().await
    ///     })
    ///     .serve_here(Listener::bind("127.0.0.1:8080")?, |server| {
    ///         println!("listening on {}", server.local_addr());
    ///         std::future::pending() // for ever
    ///     })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`serve`](Service::serve). What broke the engine of this poller, if that has ended it, or that the task has
    /// panicked; the server is over then, too. [`InvalidInput`](io::ErrorKind::InvalidInput) if it is to run
    /// [on](Builder::on) other pollers, or if the thread runs a poller already.
    pub fn serve_here<F, T>(self, listener: Listener, until: F) -> io::Result<usize>
    where
        F: FnOnce(&Server) -> T,
        T: Future<Output = Duration> + 'static,
    {
        let invalid = |message| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        if self.builder.shared.is_some() {
            return invalid("a server cannot run both here and on other pollers");
        }
        if Handle::current().is_some() {
            return invalid("this thread runs a poller already");
        }
        let mut here = None;
        let server = self.server(&listener, |options| {
            let (pollers, poller) = options.start_here()?;
            here = Some(poller);
            Ok(pollers)
        })?;
        let Some(poller) = here else { return invalid("there is no poller for this thread") };
        let server = Arc::new(server);
        let (reply, forced) = mpsc::channel();
        let mut begun: thread::Result<io::Result<()>> = Ok(Ok(()));
        let ran = poller.run(|poller| {
            begun = panic::catch_unwind(AssertUnwindSafe(|| {
                server.listen_on(listener, Some(poller))?;
                let until = until(&server);
                let shutdown = ShutdownTask { server: server.clone(), reply, begun: false };
                poller.spawn(async move { shutdown.begin(until.await) });
                Ok(())
            }));
            if !matches!(begun, Ok(Ok(()))) {
                poller.handle().stop();
            }
        });
        begun.unwrap_or_else(|panic| panic::resume_unwind(panic))?;
        ran?;
        forced.recv().map_err(|_| io::Error::other("what was to end the server has panicked"))
    }

    /// A server that does not listen yet.
    fn server(
        self,
        listener: &Listener,
        start: impl FnOnce(PollerOptions) -> io::Result<Pollers>,
    ) -> io::Result<Server> {
        let Service { builder, begin, refused } = self;
        let Builder { pollers, shared, limits, max_connections, callbacks } = builder;
        let own = shared.is_none();
        let refused = match &shared {
            Some(_) if pollers != PollerOptions::default() => {
                Some("options for pollers say nothing where pollers are given")
            }
            _ => refused,
        };
        if let Some(reason) = refused {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let pollers = shared.map_or_else(|| start(pollers), Ok)?;
        for handle in pollers.handles() {
            handle.check(&limits)?;
        }
        let group = next_group();
        let limit = ConnectionLimit::new(
            pollers.clone(),
            max_connections,
            move |poller, socket, permit| {
                let prepared = match &callbacks.prepare {
                    Some(prepare) => prepare(socket.as_fd()),
                    None => Ok(()),
                };
                match prepared.and_then(|()| poller.open(socket, limits, group)) {
                    Ok(connection) => begin(poller, connection, permit),
                    Err(error) => {
                        log::debug!("a connection was accepted and is not served: {error}");
                    }
                }
            },
        );
        let address = listener.local_addr()?;
        let listeners = Mutex::default();
        Ok(Server { pollers, own, group, limit, address, listeners })
    }
}

/// The end of a server that one of its own pollers is to bring about.
struct ShutdownTask {
    server: Arc<Server>,
    reply: mpsc::Sender<usize>,
    begun: bool,
}

impl ShutdownTask {
    /// On another thread, since a shutdown waits for the pollers.
    fn begin(mut self, grace: Duration) {
        let (server, reply) = (self.server.clone(), self.reply.clone());
        let thread = thread::Builder::new().name("duopoll-end".into()).spawn(move || {
            let _ = reply.send(server.shutdown(grace));
        });
        match thread {
            Ok(_) => self.begun = true,
            Err(error) => log::error!("the server ends without grace: {error}"),
        }
    }
}

impl Drop for ShutdownTask {
    fn drop(&mut self) {
        // Never begun, if what was to say when has panicked.
        if !self.begun {
            self.server.pollers.handles()[0].stop();
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("builder", &self.builder).finish_non_exhaustive()
    }
}

/// A group that is nobody else's.
fn next_group() -> Group {
    // 0 is that of connections which no server owns.
    static NEXT: AtomicU32 = AtomicU32::new(1);
    Group::new(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What all connections of a server share.
struct Running<H> {
    callbacks: Callbacks,
    handler: H,
}

/// How a request is handled.
trait Handler: Send + Sync + 'static {
    /// Handles one. What is left in `slot` is the connection, unless it was lost.
    fn handle(&self, slot: &mut Option<Connection>) -> impl Future<Output = io::Result<()>>;
}

/// On the poller.
struct AsyncHandler<F>(F);

impl<F> Handler for AsyncHandler<F>
where
    F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    // Every connection has one of these futures. An async function would need more room.
    fn handle(&self, slot: &mut Option<Connection>) -> impl Future<Output = io::Result<()>> {
        match slot {
            Some(connection) => Handling::There { future: (self.0)(connection) },
            None => Handling::Lost,
        }
    }
}

pin_project! {
    #[project = HandlingProjection]
    enum Handling<F> {
        There { #[pin] future: F },
        Lost,
    }
}

impl<F: Future<Output = io::Result<()>>> Future for Handling<F> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.project() {
            HandlingProjection::There { future } => future.poll(cx),
            HandlingProjection::Lost => Poll::Ready(Err(lost())),
        }
    }
}

/// By a job that may block.
struct BlockingHandler<S, F> {
    spawn: S,
    handler: Arc<F>,
}

impl<S, F> Handler for BlockingHandler<S, F>
where
    S: Fn(Job) + Send + Sync + 'static,
    F: Fn(&mut Blocking) -> io::Result<()> + Send + Sync + 'static,
{
    async fn handle(&self, slot: &mut Option<Connection>) -> io::Result<()> {
        let connection = slot.take().ok_or_else(lost)?;
        connection.share();
        let handler = self.handler.clone();
        let (reply, answer) = oneshot::channel();
        (self.spawn)(Box::new(move || {
            let mut blocking = connection.into_blocking();
            let handled = panic::catch_unwind(AssertUnwindSafe(|| handler(&mut blocking)));
            // If nobody waits any more, the poller has ended.
            let _ = reply.send((blocking.into_inner(), handled));
        }));
        let (connection, handled) = answer.await.map_err(|_| lost())?;
        *slot = Some(connection);
        // Goes on here, where it is counted.
        handled.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }
}

/// The connection, unless its handler has lost it.
fn there(slot: &mut Option<Connection>) -> io::Result<&mut Connection> {
    slot.as_mut().ok_or_else(lost)
}

fn lost() -> io::Error {
    io::Error::other("a job was dropped with its connection")
}

/// The life of a connection. Not an async function: that would keep room for its arguments twice.
fn live<H: Handler>(
    connection: Connection,
    service: Arc<Running<H>>,
    permit: Permit,
) -> impl Future<Output = ()> {
    let mut slot = Some(connection);
    async move {
        let handled = {
            let mut handling = pin!(handle(&mut slot, &service));
            poll_fn(|cx| caught(|| handling.as_mut().poll(cx))).await
        };
        match handled {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                stats::count_handler_error();
                log::debug!("a handler has failed: {error}");
            }
            // The panic hook has reported it.
            Err(_) => stats::count_handler_panic(),
        }
        if let (Some(disconnect), Some(connection)) = (&service.callbacks.disconnect, &mut slot) {
            disconnect(connection).await;
        }
        // The connection first, then its place.
        drop(slot.take());
        drop(permit);
    }
}

/// Handles requests until the connection ends.
async fn handle<H: Handler>(slot: &mut Option<Connection>, service: &Running<H>) -> io::Result<()> {
    if let Some(connect) = &service.callbacks.connect {
        connect(there(slot)?).await?;
        flush_staged(there(slot)?).await?;
    }
    // Bytes that the handler has seen and left.
    let mut seen = 0;
    loop {
        let reader = there(slot)?.reader();
        let Ok(true) = poll_fn(|cx| reader.poll_request(cx, seen)).await else { return Ok(()) };
        stats::count_request();
        let consumed = reader.consumed();
        service.handler.handle(slot).await?;
        let connection = there(slot)?;
        flush_staged(connection).await?;
        let idle = connection.reader().consumed() == consumed;
        seen = if idle { connection.input().len() } else { 0 };
    }
}

/// Sends what the handler has staged and not flushed.
fn flush_staged(connection: &mut Connection) -> impl Future<Output = io::Result<()>> {
    let staged = connection.writer().staged_len() > 0;
    poll_fn(move |cx| match staged {
        true => connection.writer().poll_flush(cx),
        false => Poll::Ready(Ok(())),
    })
}

/// Polls a future; a panic in it becomes an error. It is not polled again then, and what it was working on ends with
/// it.
fn caught<T>(poll: impl FnOnce() -> Poll<T>) -> Poll<thread::Result<T>> {
    match panic::catch_unwind(AssertUnwindSafe(poll)) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}

/// A server that runs. Dropping it shuts it down without grace.
#[derive(Debug)]
pub struct Server {
    pollers: Pollers,
    /// They are nobody else's.
    own: bool,
    group: Group,
    limit: Arc<ConnectionLimit>,
    address: Address,
    listeners: Mutex<Listeners>,
}

/// What a server listens on.
#[derive(Debug, Default)]
struct Listeners {
    addresses: Vec<Address>,
    /// Removed when the server is gone.
    files: Vec<SocketFile>,
    /// The server was shut down.
    over: bool,
}

impl Server {
    /// Serves what another listener accepts too. Returns its address.
    ///
    /// # Errors
    /// What the engine says; [`NotConnected`](io::ErrorKind::NotConnected) after a shutdown. Not to be called from a
    /// handler, which would wait for itself.
    pub fn listen(&self, listener: Listener) -> io::Result<Address> {
        self.listen_on(listener, None)
    }

    /// `here`: the first of the pollers, if the calling thread runs it.
    fn listen_on(&self, listener: Listener, mut here: Option<&mut Poller>) -> io::Result<Address> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if listeners.over {
            let message = "the server was shut down";
            return Err(io::Error::new(io::ErrorKind::NotConnected, message));
        }
        let address = listener.local_addr()?;
        let mut handles = self.pollers.handles();
        handles.retain(|handle| !handle.has_ended());
        // One socket, or with SO_REUSEPORT one for each poller.
        let more = (1..handles.len()).map_while(|_| listener.another());
        let more = more.collect::<io::Result<Vec<_>>>()?;
        let (socket, file) = listener.into_parts();
        // Whoever bound it may have left it blocking, and a poller must never block.
        SockRef::from(&socket).set_nonblocking(true)?;
        let placement =
            if more.is_empty() { Placement::Balanced } else { Placement::WhereAccepted };
        let sockets = [socket].into_iter().chain(more);
        let mut started: Vec<(&Arc<Handle>, Token)> = Vec::new();
        for (handle, socket) in handles.iter().zip(sockets) {
            let (group, acceptor) = (self.group, self.limit.clone().acceptor(placement));
            let listen = move |poller: &mut Poller| poller.listen(socket, group, acceptor);
            let token = match here.take() {
                Some(poller) => Some(listen(poller)),
                None => handle.ask(listen),
            };
            match token.unwrap_or_else(|| Err(handle.unanswered())) {
                Ok(token) => started.push((handle, token)),
                Err(error) => {
                    for (handle, token) in started {
                        handle.call(move |poller| poller.stop_listening(token));
                    }
                    return Err(error);
                }
            }
        }
        if started.is_empty() {
            return Err(io::Error::other("the pollers have ended"));
        }
        listeners.addresses.push(address.clone());
        listeners.files.extend(file);
        Ok(address)
    }

    /// The address of the listener that it was started with.
    pub fn local_addr(&self) -> &Address {
        &self.address
    }

    /// The addresses of all its listeners.
    pub fn local_addrs(&self) -> Vec<Address> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).addresses.clone()
    }

    /// The pollers it runs on.
    pub fn pollers(&self) -> &Pollers {
        &self.pollers
    }

    /// What the first poller runs on, and why. With [`Engine::Auto`] a poller falls back on its own, so the others
    /// may differ: see [`Pollers::engine_reports`].
    pub fn engine_report(&self) -> EngineReport {
        self.pollers.handles()[0].report().clone()
    }

    /// The counters of all pollers, added up. Asks each of them, so it is not for a hot path. Still works after
    /// the shutdown.
    pub fn stats(&self) -> Stats {
        self.pollers.stats()
    }

    /// Stops accepting, lets connections finish their requests, and closes those that are idle. What the kernel has
    /// accepted is still served, and what has arrived is still answered. When the grace is over the rest is closed
    /// by force: returns how many that were. Blocks for as long. Harmless if it was done before. Not to be called
    /// from a handler, which would wait for itself.
    pub fn shutdown(&self, grace: Duration) -> usize {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        let handles = self.pollers.handles();
        // First everywhere, so that no poller accepts for another that has ended.
        let leaving: Vec<_> = handles.iter().map(|handle| handle.unlisten(self.group)).collect();
        for answer in leaving {
            // An error: the poller has ended.
            let _ = answer.recv();
        }
        let deadline = Instant::now() + grace.min(GRACE_MAX);
        let end =
            |handle: &Arc<Handle>| handle.shut_down_group(self.group, deadline, self.limit.clone());
        let ending: Vec<_> = handles.iter().map(end).collect();
        let forced = ending.iter().map(|answer| answer.recv().unwrap_or(0)).sum();
        if self.own {
            self.pollers.stop();
        }
        forced
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}
