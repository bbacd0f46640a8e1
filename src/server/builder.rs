//! Where a server begins, and its options.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use duopoll_core::{Limits, MemoryLevel, WhenFull};
#[cfg(feature = "uring")]
use duopoll_uring::Features;

use crate::connection::Connection;
use crate::engine::Engine;
use crate::pollers::{Balance, PollerOptions, Pollers};
use crate::server::WeakServer;
use crate::server::callbacks::Callbacks;
use crate::task::TaskGroup;
use crate::time::FAR;

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
    ///             let length = |header: &[u8]| Ok(usize::from(header[0]) << 8 | usize::from(header[1]));
    ///             let body = connection.frame(2, length).await?;
    ///             connection.write(&(body.len() as u16).to_be_bytes())?;  // copied
    ///             connection.push(body);                                  // not copied
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
    pub(super) pollers: PollerOptions,
    pub(super) shared: Option<Pollers>,
    pub(super) limits: Limits,
    pub(super) max_connections: Option<usize>,
    pub(super) tasks: Option<TaskGroup>,
    pub(super) weak: WeakServer,
    pub(super) callbacks: Callbacks,
}

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

    /// Whether each poller is bound to a CPU of its own. Default: no.
    pub fn pinned(mut self, pinned: bool) -> Builder {
        self.pollers = self.pollers.pinned(pinned);
        self
    }

    /// Called on the thread of each poller before it runs; see [`PollerOptions::on_thread_start`].
    pub fn on_thread_start<F, G>(mut self, start: F) -> Builder
    where
        F: Fn() -> G + Send + Sync + 'static,
        G: 'static,
    {
        self.pollers = self.pollers.on_thread_start(start);
        self
    }

    /// The most bytes of memory that its connections may hold; see [`PollerOptions::memory_budget`].
    pub fn memory_budget(mut self, bytes: usize) -> Builder {
        self.pollers = self.pollers.memory_budget(bytes);
        self
    }

    /// Who goes when that is used up; see [`PollerOptions::when_full`].
    pub fn when_full(mut self, when_full: WhenFull) -> Builder {
        self.pollers = self.pollers.when_full(when_full);
        self
    }

    /// Called when that has come to another level; see [`PollerOptions::on_memory_level`].
    pub fn on_memory_level<F>(mut self, callback: F) -> Builder
    where
        F: Fn(MemoryLevel) + Send + Sync + 'static,
    {
        self.pollers = self.pollers.on_memory_level(callback);
        self
    }

    /// Whether its pollers measure how long things take; see [`PollerOptions::timings`].
    pub fn timings(mut self, measured: bool) -> Builder {
        self.pollers = self.pollers.timings(measured);
        self
    }

    /// Has a handler that holds its poller for longer be logged; see [`PollerOptions::slow_handler`].
    pub fn slow_handler(mut self, bound: Duration) -> Builder {
        self.pollers = self.pollers.slow_handler(bound);
        self
    }

    /// The pollers to run on, with whatever else lives on them. Default: pollers of the server's own, for which the options
    /// above count. They end with the server, shared ones do not.
    pub fn on(mut self, pollers: Pollers) -> Builder {
        self.shared = Some(pollers);
        self
    }

    /// What a connection may hold, in place of whatever the options below have set before. Default: see [`Limits`].
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

    /// How long the bytes of one request may take to arrive, from its first on, however many reads the handler makes of it: it
    /// sets the [read deadline](crate::Control::set_read_deadline) at each call of the handler, unless the call before has taken
    /// nothing. With [`on_connection`](Builder::on_connection), where nobody knows when a request begins, it is an error when the service
    /// is served: set the deadline in the handler. Default: for ever.
    pub fn request_timeout(mut self, timeout: Duration) -> Builder {
        self.callbacks.request_timeout = Some(timeout.min(FAR));
        self
    }

    /// The largest message; see [`Limits::message_bytes_max`]. Default: 16 MiB.
    pub fn message_bytes_max(mut self, bytes: usize) -> Builder {
        self.limits.message_bytes_max = bytes;
        self
    }

    /// How long each wait of a flush may take; see
    /// [`Control::set_write_timeout`](crate::Control::set_write_timeout). Default: for ever.
    pub fn write_timeout(mut self, timeout: Duration) -> Builder {
        self.limits.write_timeout = Some(timeout);
        self
    }

    /// How long no byte may move in either direction, while a connection waits for its peer, before it is ended; see
    /// [`Connection`](crate::Connection). Default: for ever.
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

    /// How many connections may be open at once, on all pollers. Of those beyond, what one turn
    /// accepts from each listener, 64 at most and one more, is accepted and waits; the others wait in the kernel. Default: no limit but the process's descriptors.
    pub fn max_connections(mut self, max: usize) -> Builder {
        self.max_connections = Some(max);
        self
    }

    /// Tasks that belong to the server: a graceful shutdown asks them to come to their end, waits for them within the grace, and
    /// ends those that are left. Default: none.
    pub fn tasks(mut self, tasks: &TaskGroup) -> Builder {
        self.tasks = Some(tasks.clone());
        self
    }

    /// The way from the handlers to their server, which begins after they are made.
    ///
    /// ```no_run
    /// use duopoll::{Connection, EventLoop, Kind, Listener};
    ///
    /// let builder = EventLoop::builder();
    /// let server = builder.weak_server();
    /// let _server = builder
    ///     .on_request(async move |connection: &mut Connection| {
    ///         connection.until(b'\n', 1024).await?;
    ///         // None once the server is gone.
    ///         let Some(server) = server.upgrade() else { return Ok(()) };
    ///         connection.write(format!("{} open\n", server.open_connections()).as_bytes())
    ///     })
    ///     .serve(Listener::bind("127.0.0.1:8080")?)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn weak_server(&self) -> WeakServer {
        self.weak.clone()
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
