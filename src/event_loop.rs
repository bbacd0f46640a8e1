//! Servers: an event loop that calls a handler for what its connections receive.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use duopoll_core::Limits;
use socket2::SockRef;

use crate::address::Address;
use crate::connection::Connection;
use crate::engine::{Engine, EngineReport};
use crate::listener::{Listener, SocketFile};
use crate::poller::{self, Acceptor, Poller};
use crate::pollers::Pollers;
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
#[derive(Clone, Debug, Default)]
pub struct Builder {
    engine: Engine,
    pollers: Option<usize>,
    limits: Limits,
}

impl Builder {
    /// Which engine the pollers run on. Default: [`Engine::Auto`].
    pub fn engine(mut self, engine: Engine) -> Builder {
        self.engine = engine;
        self
    }

    /// How many pollers, each a thread. Default: what the machine can run at once.
    pub fn pollers(mut self, pollers: usize) -> Builder {
        self.pollers = Some(pollers);
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
        let Builder { engine, pollers, limits } = self.builder;
        let count =
            pollers.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        let address = listener.local_addr()?;
        let (socket, file) = listener.into_parts();
        // Whoever bound it may have left it blocking, and a poller must never block.
        SockRef::from(&socket).set_nonblocking(true)?;

        let pollers = Pollers::start(engine, count)?;
        let acceptor = acceptor(pollers.clone(), limits, Arc::new(self.handler));
        let server = Server { pollers, address, _file: file };
        let first = &server.pollers.handles()[0];
        let listening = first.ask(move |poller| poller.listen(socket, acceptor));
        listening.unwrap_or_else(|| Err(io::Error::other("the poller ended")))?;
        Ok(server)
    }
}

/// Gives accepted connections to the pollers in turn.
fn acceptor<F>(pollers: Pollers, limits: Limits, handler: Arc<F>) -> Acceptor
where
    F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    Arc::new(move |poller, _listener, socket| {
        let next = pollers.pick();
        let handler = handler.clone();
        if Arc::ptr_eq(next, poller.handle()) {
            start(poller, socket, limits, handler);
        } else {
            // If that poller has ended, the server is shutting down, and the socket is closed with the call.
            next.call(move |poller| start(poller, socket, limits, handler));
        }
    })
}

/// Takes a connection on, and starts its task.
fn start<F>(poller: &mut Poller, socket: OwnedFd, limits: Limits, handler: Arc<F>)
where
    F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    match poller.open(socket, limits) {
        Ok(connection) => poller.spawn(serve(connection, handler)),
        Err(error) => log::warn!("a connection was accepted and cannot be served: {error}"),
    }
}

/// The life of a connection.
async fn serve<F>(mut connection: Connection, handler: Arc<F>)
where
    F: AsyncFn(&mut Connection) -> io::Result<()>,
{
    // Bytes that the handler has seen and left.
    let mut seen = 0;
    while let Ok(true) = poll_fn(|cx| connection.reader().poll_request(cx, seen)).await {
        poller::count_request();
        let consumed = connection.reader().consumed();
        let mut result = handler(&mut connection).await;
        if result.is_ok() && connection.writer().staged_len() > 0 {
            result = connection.flush().await;
        }
        if let Err(error) = result {
            poller::count_handler_error();
            log::debug!("a handler has failed: {error}");
            return;
        }
        let idle = connection.reader().consumed() == consumed;
        seen = if idle { connection.input().len() } else { 0 };
    }
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
