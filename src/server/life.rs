//! The life of a connection that is served: a task on its poller, from the first callback to the last.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;

use duopoll_core::{Control, contain, report};
use futures_channel::oneshot;
use pin_project_lite::pin_project;

use crate::blocking::Blocking;
use crate::caught::caught;
use crate::connection::Connection;
use crate::server::admission::Permit;
use crate::server::callbacks::Callbacks;
use crate::server::figures::Figures;
use crate::stats;
use crate::time::now;
use crate::trace;

/// Requests of one connection that are handled in a row while others wait.
const REQUESTS_MAX: u32 = 256;

/// A call of a handler that blocks; see [`Builder::on_request_blocking`](crate::Builder::on_request_blocking).
pub type Job = Box<dyn FnOnce() + Send>;

/// The life of a connection; see [`Builder::on_connection_spawned`](crate::Builder::on_connection_spawned).
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What all connections of a server share.
pub(super) struct Running<H> {
    pub(super) callbacks: Callbacks,
    pub(super) handler: H,
    pub(super) figures: Arc<Figures>,
}

/// How a request is handled.
pub(super) trait Handler: Send + Sync + 'static {
    /// What is kept of a connection between its requests. It stays on the poller.
    type State: 'static;

    /// Makes it, before the first request.
    fn begin(&self, connection: &mut Connection) -> impl Future<Output = io::Result<Self::State>>;

    /// Handles one. What is left in `slot` is the connection, unless it was lost.
    fn handle(
        &self,
        slot: &mut Option<Connection>,
        state: &mut Self::State,
    ) -> impl Future<Output = io::Result<()>>;
}

/// On the poller.
pub(super) struct AsyncHandler<F>(pub(super) F);

impl<F> Handler for AsyncHandler<F>
where
    F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    type State = ();

    fn begin(&self, _: &mut Connection) -> impl Future<Output = io::Result<()>> {
        ready(Ok(()))
    }

    // Every connection has one of these futures. An async function would need more room.
    fn handle(
        &self,
        slot: &mut Option<Connection>,
        (): &mut (),
    ) -> impl Future<Output = io::Result<()>> {
        match slot {
            Some(connection) => Handling::There { future: (self.0)(connection) },
            None => Handling::Lost,
        }
    }
}

/// On the poller, with state.
pub(super) struct StatefulHandler<I, F> {
    pub(super) init: I,
    pub(super) handler: F,
}

impl<S, I, F> Handler for StatefulHandler<I, F>
where
    S: 'static,
    I: AsyncFn(&mut Connection) -> io::Result<S> + Send + Sync + 'static,
    F: AsyncFn(&mut Connection, &mut S) -> io::Result<()> + Send + Sync + 'static,
{
    type State = S;

    fn begin(&self, connection: &mut Connection) -> impl Future<Output = io::Result<S>> {
        (self.init)(connection)
    }

    fn handle(
        &self,
        slot: &mut Option<Connection>,
        state: &mut S,
    ) -> impl Future<Output = io::Result<()>> {
        match slot {
            Some(connection) => Handling::There { future: (self.handler)(connection, state) },
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
pub(super) struct BlockingHandler<S, F> {
    pub(super) spawn: S,
    pub(super) handler: Arc<F>,
}

impl<S, F> Handler for BlockingHandler<S, F>
where
    S: Fn(Job) + Send + Sync + 'static,
    F: Fn(&mut Blocking) -> io::Result<()> + Send + Sync + 'static,
{
    type State = ();

    fn begin(&self, _: &mut Connection) -> impl Future<Output = io::Result<()>> {
        ready(Ok(()))
    }

    async fn handle(&self, slot: &mut Option<Connection>, (): &mut ()) -> io::Result<()> {
        let connection = slot.take().ok_or_else(lost)?;
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
pub(super) fn live<H: Handler>(
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
        service.count(handled, || slot.as_ref().map(Connection::control));
        if let Some(connection) = &mut slot {
            service.disconnect(connection).await;
        }
        // The connection first, then its place.
        drop(slot.take());
        drop(permit);
    }
}

/// What is in a box, which is gone.
#[expect(clippy::boxed_local, reason = "the box is to be gone when this returns")]
fn unboxed<T>(boxed: Box<T>) -> T {
    *boxed
}

/// The life of a connection that its handler owns. In a box, which is gone when the handler has it: a future keeps the place of what was
/// moved out of it.
pub(super) async fn give<F>(
    mut connection: Box<Connection>,
    service: Arc<Running<F>>,
    permit: Permit,
) where
    F: AsyncFn(Connection) -> io::Result<()> + Send + Sync + 'static,
{
    let control = connection.control();
    let back = service.callbacks.disconnect.is_some().then(|| connection.lend());
    let handled = {
        let mut handling = pin!(async {
            connection.reader_mut().serve();
            if let Some(connect) = &service.callbacks.connect {
                connect(&mut connection).await?;
                flush_staged(&mut connection).await?;
            }
            (service.handler)(unboxed(connection)).await
        });
        poll_fn(|cx| caught(|| handling.as_mut().poll(cx))).await
    };
    service.count(handled, || Some(control.clone()));
    // Somebody else may have it now, or it was taken apart.
    let back = match back {
        Some(back) => back.await.ok(),
        None => None,
    };
    match back {
        Some(mut connection) => service.disconnect(&mut connection).await,
        None if control.is_open() => control.on_release(|| drop(permit)),
        None => {}
    }
}

impl<H> Running<H> {
    /// Counts how a handler has ended.
    fn count(
        &self,
        handled: thread::Result<io::Result<()>>,
        control: impl FnOnce() -> Option<Control>,
    ) {
        match handled {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                stats::count_handler_error();
                self.figures.count_error();
                log_failure(control(), error);
            }
            Err(panic) => {
                self.count_panic();
                // What it was the panic hook has reported.
                report(|| match control() {
                    Some(control) => log::error!("a handler of {control} has panicked"),
                    None => log::error!("a handler has panicked"),
                });
                contain("what a handler has panicked with", || drop(panic));
            }
        }
    }

    fn count_panic(&self) {
        stats::count_handler_panic();
        self.figures.count_panic();
    }

    /// Calls `on_disconnect`, if there is one.
    async fn disconnect(&self, connection: &mut Connection) {
        let Some(disconnect) = &self.callbacks.disconnect else { return };
        let mut disconnecting = pin!(disconnect(connection));
        if poll_fn(|cx| caught(|| disconnecting.as_mut().poll(cx))).await.is_err() {
            self.count_panic();
        }
    }
}

/// Logs why a handler has failed. The error is the user's, who may have it panic.
pub(super) fn log_failure(control: Option<Control>, error: io::Error) {
    contain("the error of a handler", || {
        match control {
            Some(control) => log::debug!("a handler of {control} has failed: {}", Whole(&error)),
            None => log::debug!("a handler has failed: {}", Whole(&error)),
        }
        drop(error);
    });
}

/// An error with what is behind it.
struct Whole<'a>(&'a dyn Error);

impl fmt::Display for Whole<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// Handles requests until the connection ends.
async fn handle<H: Handler>(slot: &mut Option<Connection>, service: &Running<H>) -> io::Result<()> {
    there(slot)?.reader_mut().serve();
    if let Some(connect) = &service.callbacks.connect {
        connect(there(slot)?).await?;
        flush_staged(there(slot)?).await?;
    }
    let mut state = service.handler.begin(there(slot)?).await?;
    flush_staged(there(slot)?).await?;
    // Bytes that the handler has seen and left.
    let mut seen = 0;
    let mut in_a_row = 0;
    loop {
        let reader = there(slot)?.reader_mut();
        let more = poll_fn(|cx| {
            if in_a_row == REQUESTS_MAX {
                // Others had better have their turn.
                in_a_row = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let more = reader.poll_request(cx, seen);
            in_a_row = if more.is_pending() { 0 } else { in_a_row + 1 };
            more
        });
        match more.await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // More was left unread than a message may have.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(_) => return Ok(()),
        }
        if let (Some(timeout), 0) = (service.callbacks.request_timeout, seen) {
            reader.control().set_read_deadline(Some(now() + timeout));
        }
        stats::count_request();
        service.figures.count_request();
        let consumed = reader.consumed();
        // Where nobody listens there is no room for more than the handler's future, which is not moved either.
        match trace::request() {
            None => service.handler.handle(slot, &mut state).await?,
            span => {
                let handling = service.handler.handle(slot, &mut state);
                Box::pin(trace::within(span, handling)).await?;
            }
        }
        let connection = there(slot)?;
        flush_staged(connection).await?;
        let idle = connection.reader_mut().consumed() == consumed;
        seen = if idle { connection.input_mut().len() } else { 0 };
    }
}

/// Sends what the handler has staged and not flushed.
fn flush_staged(connection: &mut Connection) -> impl Future<Output = io::Result<()>> {
    let staged = connection.writer_mut().staged_len() > 0;
    poll_fn(move |cx| match staged {
        true => connection.writer_mut().poll_flush(cx),
        false => Poll::Ready(Ok(())),
    })
}
