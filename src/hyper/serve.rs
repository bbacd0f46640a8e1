//! A connection that hyper serves.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::hyper::body::{Body, Incoming};
use ::hyper::rt::{Read, Write};
use ::hyper::server::conn::{http1, http2};
use ::hyper::service::HttpService;
use pin_project_lite::pin_project;

use crate::hyper::controlled::{Begun, Controlled, poll_begun, poll_next, unread};
use crate::hyper::http::{Settings, Versions};
use crate::hyper::run::LocalExecutor;
use crate::poller::Handle;
use crate::time::{Sleep, now, sleep};
use crate::{Control, Watch};

type BoxError = Box<dyn Error + Send + Sync>;

/// A connection of HTTP/1 that asks for nothing for so long gives its buffers back, after twice that at the latest.
const IDLE: Duration = Duration::from_millis(200);

pin_project! {
    /// What [`Http::serve`](super::Http::serve) gives. It is written by hand, since a connection is this large, whatever it does: the
    /// states of an `async` block would lie side by side.
    pub(super) struct Serve<C, S>
    where
        S: HttpService<Incoming>,
    {
        settings: Arc<Settings>,
        control: Control,
        // None: hyper was told that the server shuts down.
        draining: Option<Watch>,
        drains: bool,
        #[pin]
        stage: Stage<C, S>,
    }
}

pin_project! {
    #[project = Staged]
    enum Stage<C, S>
    where
        S: HttpService<Incoming>,
    {
        // It waits for its client, and has none of hyper's buffers.
        Waits {
            parts: Option<(C, S)>,
            timeout: Option<Sleep>,
            // So many requests were served: behind the first it is HTTP/1.
            served: u32,
        },
        Http1 {
            connection: Option<http1::UpgradeableConnection<C, S>>,
            idle: Idle,
        },
        Http2 {
            #[pin]
            connection: http2::Connection<C, S, LocalExecutor>,
        },
    }
}

/// Whether a connection asks for nothing.
struct Idle {
    /// When to look again.
    look: Sleep,
    /// How many requests it had begun at the last look.
    seen: u32,
    /// And when its buffers were given back: once for each request, so that the time for a head is not begun anew time and again.
    given_back: u32,
}

impl<C, S, B> Serve<C, S>
where
    C: Controlled + Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(settings: Arc<Settings>, io: C, service: S) -> Serve<C, S> {
        let control = io.control();
        let draining = Some(control.draining());
        let timeout = Some(sleep(settings.begin_timeout));
        let stage = Stage::Waits { parts: Some((io, service)), timeout, served: 0 };
        Serve { settings, control, draining, drains: false, stage }
    }
}

impl<C, S, B> Stage<C, S>
where
    C: Controlled + Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Hands a connection that has begun to hyper.
    fn begin(settings: &Settings, begun: Begun, served: u32, (io, service): (C, S)) -> Stage<C, S> {
        if matches!(
            (begun, settings.versions),
            (Begun::Http2, Versions::Both) | (_, Versions::Http2)
        ) {
            return Stage::Http2 { connection: settings.http2.serve_connection(io, service) };
        }
        let connection = settings.http1.serve_connection(io, service).with_upgrades();
        let idle = Idle { look: sleep(IDLE), seen: served, given_back: served };
        Stage::Http1 { connection: Some(connection), idle }
    }
}

impl<C, S, B> Future for Serve<C, S>
where
    C: Controlled + Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        if Handle::current().is_none() {
            let text = "HTTP is served on a poller, which has its tasks and timers";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::Unsupported, text)));
        }
        loop {
            // First: what has arrived when the server begins to shut down is answered.
            let polled = match this.stage.as_mut().project() {
                Staged::Waits { parts, timeout, served } => {
                    let Some((io, _)) = parts else { return Poll::Ready(Ok(())) };
                    let begun = match *served {
                        0 => poll_begun(io, cx),
                        _ => poll_next(io, cx),
                    };
                    let late =
                        timeout.as_mut().is_some_and(|late| Pin::new(late).poll(cx).is_ready());
                    match begun {
                        Poll::Pending if late => return Poll::Ready(Ok(())),
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Begun::Gone) => return Poll::Ready(Ok(())),
                        Poll::Ready(begun) => {
                            let Some(parts) = parts.take() else { continue };
                            let stage = Stage::begin(this.settings, begun, *served, parts);
                            this.stage.set(stage);
                            continue;
                        }
                    }
                }
                Staged::Http1 { connection: Some(connection), .. } => Pin::new(connection).poll(cx),
                Staged::Http1 { .. } => return Poll::Ready(Ok(())),
                Staged::Http2 { connection } => connection.poll(cx),
            };
            if let Poll::Ready(served) = polled {
                return Poll::Ready(served.or_else(without_timeout));
            }
            if this.draining.as_mut().is_some_and(|draining| Pin::new(draining).poll(cx).is_ready())
            {
                (*this.draining, *this.drains) = (None, true);
            }
            if *this.drains && this.control.is_drained() {
                *this.drains = false;
                match this.stage.as_mut().project() {
                    Staged::Http1 { connection: Some(connection), .. } => {
                        Pin::new(connection).graceful_shutdown();
                    }
                    Staged::Http2 { connection } => connection.graceful_shutdown(),
                    _ => {}
                }
                continue;
            }
            let Staged::Http1 { connection, idle } = this.stage.as_mut().project() else {
                return Poll::Pending;
            };
            ready!(idle.poll(this.control, this.draining.is_some(), cx));
            let served = idle.seen;
            let Some(parts) = connection.take().and_then(|connection| connection.into_parts())
            else {
                return Poll::Ready(Ok(()));
            };
            let mut io = parts.io;
            unread(&mut io, parts.read_buf);
            let timeout = this.settings.header_read_timeout.map(sleep);
            this.stage.set(Stage::Waits { parts: Some((io, parts.service)), timeout, served });
        }
    }
}

impl Idle {
    /// Waits until the connection has asked for nothing for a while, and hyper holds nothing of it but empty buffers.
    fn poll(&mut self, control: &Control, goes_on: bool, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(Pin::new(&mut self.look).poll(cx));
            let requests = control.requests();
            let was_idle = requests.begun == self.seen;
            self.seen = requests.begun;
            if was_idle && goes_on && requests.are_over && self.given_back != self.seen {
                return Poll::Ready(());
            }
            self.look.reset(now() + IDLE);
        }
    }
}

/// That the head of a request took too long is how idle connections end.
fn without_timeout(error: ::hyper::Error) -> io::Result<()> {
    if error.is_timeout() { Ok(()) } else { Err(io::Error::other(error)) }
}
