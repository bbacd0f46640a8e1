//! The handlers that make a service of a builder: on the poller, in jobs that may block, and those that own their connections.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread;

use crate::blocking::Blocking;
use crate::connection::Connection;
use crate::server::builder::Builder;
use crate::server::figures::Figures;
use crate::server::life::{
    AsyncHandler, BlockingHandler, Handler, Job, Running, StatefulHandler, Task, give, live,
    log_failure,
};
use crate::server::service::Service;
use crate::trace;

impl Builder {
    /// The handler: called when bytes have arrived that it has not seen, for one connection never twice at a time.
    ///
    /// It is an `async` closure (`async |connection: &mut Connection| …`). It is called on all pollers, so the closure is `Send`
    /// and `Sync`; its future stays on the connection's poller and need not be. While it waits, others run. It may take one
    /// request or all that have arrived; what it leaves is there at its next call. If it takes nothing, it is called
    /// again only when more has come. What it has written and not flushed is flushed when it
    /// returns `Ok`.
    ///
    /// A graceful shutdown closes a connection between two calls, and waits for one that is under way. So a handler returns
    /// between requests; one that serves them in a loop of its own, or streams, watches
    /// [`Control::draining`](crate::Control::draining), or uses [`on_connection`](Builder::on_connection).
    ///
    /// An error ends the connection, as a panic does; both are counted, and the error is logged at debug level.
    /// The end of the stream while the handler waits for more is such an error,
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof); between two calls it just ends the connection.
    pub fn on_request<F>(self, handler: F) -> Service
    where
        F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    {
        self.served_by(AsyncHandler(handler))
    }

    /// As [`on_request`](Builder::on_request), with state of each connection that the handler gets beside it, and that need not
    /// be `Send`. `init` makes it before the first request, behind `on_connect`; it may send and receive, and an error of it
    /// ends the connection. The state is dropped with the connection's last request, before `on_disconnect`.
    ///
    /// ```no_run
    /// # use duopoll::{Connection, EventLoop, Listener};
    /// # use std::rc::Rc;
    /// let server = EventLoop::builder()
    ///     .on_request_with(
    ///         async |_: &mut Connection| Ok(Rc::new(std::cell::Cell::new(0))),
    ///         async |connection: &mut Connection, requests: &mut Rc<std::cell::Cell<u64>>| {
    ///             connection.until(b'\n', 1024).await?;
    ///             requests.set(requests.get() + 1);
    ///             connection.write(format!("{}\n", requests.get()).as_bytes())
    ///         },
    ///     )
    ///     .serve(Listener::bind("127.0.0.1:8080")?)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn on_request_with<S, I, F>(self, init: I, handler: F) -> Service
    where
        S: 'static,
        I: AsyncFn(&mut Connection) -> io::Result<S> + Send + Sync + 'static,
        F: AsyncFn(&mut Connection, &mut S) -> io::Result<()> + Send + Sync + 'static,
    {
        self.served_by(StatefulHandler { init, handler })
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
        self.served_by(BlockingHandler { spawn, handler: Arc::new(handler) })
    }

    /// A service whose connections live on their pollers.
    fn served_by(self, handler: impl Handler) -> Service {
        let (callbacks, figures) = (self.callbacks.clone(), Arc::<Figures>::default());
        let running = Arc::new(Running { callbacks, handler, figures: figures.clone() });
        Service::new(self, figures, move |poller, connection, permit| {
            let control = connection.control();
            poller.serve(&control, live(connection, running.clone(), permit));
        })
    }

    /// A handler that owns its connection, on the connection's poller: for protocols that are more than requests and replies, and
    /// for whatever takes a connection by value. Neither it nor its future need be `Send`, and it may move the connection into a
    /// [task](crate::task), take it apart, or [detach](Connection::detach) it.
    ///
    /// It serves requests in a loop around [`next_request`](Connection::next_request), which says when the server shuts down, as
    /// [`Control::draining`](crate::Control::draining) does. `on_connect` comes before it; `on_disconnect` gets the connection
    /// when it is dropped, and is not called for one that was taken apart or detached. A task that keeps a half of it keeps it
    /// open, and a graceful shutdown waits until the grace is over: such tasks have to be ended, or ask for
    /// [`draining`](crate::Control::draining) themselves. The connection has its place among
    /// [`max_connections`](Builder::max_connections) until the handler has returned and the connection has come to its end,
    /// wherever it is.
    ///
    /// An error ends nothing but what the handler still had: it is counted and logged, as a panic is.
    ///
    /// ```no_run
    /// # use duopoll::{Connection, EventLoop, Listener, task};
    /// # use std::time::Duration;
    /// let server = EventLoop::builder()
    ///     .on_connection(async |connection: Connection| {
    ///         let (mut reader, mut writer) = connection.into_split();
    ///         // Pushes beside what it receives.
    ///         let ticks = task::spawn_local(async move {
    ///             let mut interval = duopoll::time::interval(Duration::from_secs(1));
    ///             loop {
    ///                 interval.tick().await;
    ///                 writer.write(b"tick\n")?;
    ///                 writer.flush().await?;
    ///             }
    ///         });
    ///         // Until the peer ends it, or the server shuts down.
    ///         while reader.next_request().await? {
    ///             println!("{} bytes", reader.buffer_mut().len());
    ///             reader.buffer_mut().clear();
    ///         }
    ///         ticks.abort();
    ///         ticks.await.unwrap_or(Ok(()))
    ///     })
    ///     .serve(Listener::bind("127.0.0.1:8080")?)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn on_connection<F>(self, handler: F) -> Service
    where
        F: AsyncFn(Connection) -> io::Result<()> + Send + Sync + 'static,
    {
        let timed = self.callbacks.request_timeout.is_some();
        let (callbacks, figures) = (self.callbacks.clone(), Arc::<Figures>::default());
        let running = Arc::new(Running { callbacks, handler, figures: figures.clone() });
        let service = Service::new(self, figures, move |poller, connection, permit| {
            let control = connection.control();
            poller.serve(&control, give(Box::new(connection), running.clone(), permit));
        });
        service.refused_if(timed, "request_timeout does not go with on_connection")
    }

    /// As [`on_connection`](Builder::on_connection), on an executor of the user's own: `spawn` is given its future, which is
    /// `Send`, for instance for `tokio::spawn`. Every wait then wakes another thread. Its end drops what it has of the
    /// connection, with what it has not flushed.
    ///
    /// `on_connect` and `on_disconnect` have no place here, and are an error when the service is served. Requests are not
    /// counted; errors and panics are, in [`ServerStats`](crate::ServerStats).
    pub fn on_connection_spawned<S, F, T>(self, spawn: S, handler: F) -> Service
    where
        S: Fn(Task) + Send + Sync + 'static,
        F: Fn(Connection) -> T + Send + Sync + 'static,
        T: Future<Output = io::Result<()>> + Send + 'static,
    {
        let called = self.callbacks.connect.is_some() || self.callbacks.disconnect.is_some();
        let timed = self.callbacks.request_timeout.is_some();
        let figures = Arc::<Figures>::default();
        let service = Service::new(self, figures.clone(), move |poller, connection, permit| {
            let control = connection.control();
            let served = handler(connection);
            let panics = PanicCount(figures.clone());
            let engine = poller.handle().report().engine;
            spawn(Box::pin(trace::serving(&control.clone(), engine, false, async move {
                if let Err(error) = served.await {
                    panics.0.count_error();
                    log_failure(Some(control), error);
                }
                drop(permit);
            })));
        });
        let callbacks = "on_connect and on_disconnect do not go with on_connection_spawned";
        let service = service.refused_if(called, callbacks);
        service.refused_if(timed, "request_timeout does not go with on_connection_spawned")
    }
}

/// Counts a panic of the future that it lies in.
struct PanicCount(Arc<Figures>);

impl Drop for PanicCount {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.count_panic();
        }
    }
}
