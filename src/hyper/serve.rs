//! Connections served by hyper.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::hyper::body::{Body, Incoming};
use ::hyper::rt::{Read, Write};
use ::hyper::service::Service;
use ::hyper::{Request, Response};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;

use crate::connection::Connection;
use crate::hyper::request::Counted;
use crate::hyper::run::{LocalExecutor, PollerTimer};
use crate::poller::Handle;
use crate::time::timeout;
#[cfg(feature = "rustls")]
use crate::tls::TlsConnection;
use crate::{Control, LinkBuffer};

type BoxError = Box<dyn Error + Send + Sync>;

/// How long a client may take for the head of a request, and before it for the first bytes, if nothing else is said.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// What may wait to be sent of each stream of HTTP/2, in bytes, if nothing else is said: a client that reads none of 200 streams holds as much
/// of each.
const SEND_BYTES_MAX: usize = 64 << 10;

/// What a client of HTTP/2 begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves HTTP/1 and HTTP/2 on connections, whichever the client begins with, for a handler of
/// [`on_connection`](crate::Builder::on_connection). Clones do the same.
///
/// - Connections are kept alive, requests of HTTP/1 may be pipelined, and upgrades are done: `hyper::upgrade::on` in a handler
///   gives what can be [taken apart](super::upgrade::downcast) into the [`Connection`].
/// - When the server shuts down the client is told at once, by `connection: close` or GOAWAY; what it has asked for by then is
///   answered, and connections between requests end. Of pipelined requests the one is answered that is being worked at: the `close`
///   in its reply says that the others are not. A client of HTTP/2 that does not answer the ping behind GOAWAY has the whole grace.
/// - The server's [read timeout](crate::Builder::read_timeout) does not count, since hyper waits for its peer all the time: there is one
///   for heads, below, and how long a body may take is the service's to say, with [`timeout`](crate::time::timeout) around it. Its
///   idle timeout counts while no request is under way.
/// - Each stream of HTTP/2 is a task of the poller's. A panic of a service ends its stream, or its connection of HTTP/1.
/// - A client has 30 seconds to begin, and by HTTP/1 as many for the head of a request, from the end of the one before; so it ends
///   connections that are idle for so long, too. By HTTP/2 idle ones stay, unless they are
///   [pinged](::hyper::server::conn::http2::Builder::keep_alive_interval) or the server has an
///   [idle timeout](crate::Builder::idle_timeout).
#[derive(Clone)]
pub struct Http {
    builder: Builder<LocalExecutor>,
    /// The same for clients that are known to speak one version: hyper need not look at what they begin with then, which takes more of
    /// it for a buffer.
    only: Option<[Builder<LocalExecutor>; 2]>,
    begin_timeout: Duration,
}

impl Http {
    /// With what is usual.
    pub fn new() -> Http {
        let mut builder = Builder::new(LocalExecutor);
        builder.http1().timer(PollerTimer).header_read_timeout(HEADER_READ_TIMEOUT);
        builder.http2().timer(PollerTimer).max_send_buf_size(SEND_BYTES_MAX);
        Http { only: only(&builder), builder, begin_timeout: HEADER_READ_TIMEOUT }
    }

    /// How long a client may take until it has said which version it speaks.
    pub fn begin_timeout(mut self, timeout: Duration) -> Http {
        self.begin_timeout = timeout;
        self
    }

    /// Changes what hyper can be told: limits, timeouts, windows, keep-alive by HTTP/2's pings, one version only.
    ///
    /// ```
    /// # use duopoll::hyper::Http;
    /// # use std::time::Duration;
    /// let http = Http::new().configure(|builder| {
    ///     builder.http1().header_read_timeout(Duration::from_secs(5)).max_headers(50);
    ///     builder.http2().max_concurrent_streams(100).keep_alive_interval(Duration::from_secs(20));
    /// });
    /// ```
    pub fn configure(mut self, change: impl FnOnce(&mut Builder<LocalExecutor>)) -> Http {
        change(&mut self.builder);
        self.only = only(&self.builder);
        self
    }

    /// Serves a connection with a service of hyper's until it ends, or the server shuts down and what was asked for is
    /// answered. `io` is a [`Connection`], or what gives one with [`Controlled`], such as TLS over it.
    ///
    /// # Errors
    /// What has ended the connection before its time: of the network, or of a client that does not speak HTTP. That the head of
    /// a request took too long is none, since clients that are idle end like this.
    /// [`Unsupported`](io::ErrorKind::Unsupported) on a thread that is no poller's.
    ///
    /// # Cancellation
    /// Dropping it drops the connection; streams of HTTP/2 that are being handled end when they notice.
    pub async fn serve<C, S, B>(&self, mut io: C, service: S) -> io::Result<()>
    where
        C: Controlled + Read + Write + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + 'static,
        S::Future: 'static,
        S::Error: Into<BoxError>,
        B: Body + 'static,
        B::Error: Into<BoxError>,
    {
        if Handle::current().is_none() {
            let text = "HTTP is served on a poller, which has its tasks and timers";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let control = io.control();
        let begins = timeout(self.begin_timeout, poll_fn(|cx| io.poll_begin(cx)));
        let builder = match (begins.await, &self.only) {
            (Err(_) | Ok(Begun::Gone), _) => return Ok(()),
            (Ok(Begun::Http1), Some([http1, _])) => http1,
            (Ok(Begun::Http2), Some([_, http2])) => http2,
            _ => &self.builder,
        };
        let mut draining = Some(control.draining());
        let mut told = false;
        let service = Counted::new(service, control.clone());
        let mut serving = pin!(builder.serve_connection_with_upgrades(io, service));
        let served = poll_fn(|cx| {
            // First: what has arrived when the server begins to shut down is answered.
            if let Poll::Ready(served) = serving.as_mut().poll(cx) {
                return Poll::Ready(served);
            }
            if draining.as_mut().is_some_and(|draining| Pin::new(draining).poll(cx).is_ready()) {
                draining = None;
            }
            if draining.is_some() || told || !control.is_drained() {
                return Poll::Pending;
            }
            told = true;
            serving.as_mut().graceful_shutdown();
            serving.as_mut().poll(cx)
        });
        let Err(error) = served.await else { return Ok(()) };
        let is_late =
            error.downcast_ref::<::hyper::Error>().is_some_and(::hyper::Error::is_timeout);
        if is_late { Ok(()) } else { Err(into_io_error(error)) }
    }

    /// As [`serve`](Http::serve), with a service of tower's, such as an axum `Router` or tonic's `Routes`.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancellation
    /// As there.
    pub async fn serve_tower<C, S, B>(&self, io: C, service: S) -> io::Result<()>
    where
        C: Controlled + Read + Write + Unpin + Send + 'static,
        TowerToHyperService<S>: Service<
                Request<Incoming>,
                Response = Response<B>,
                Error: Into<BoxError>,
                Future: 'static,
            >,
        S: 'static,
        B: Body + 'static,
        B::Error: Into<BoxError>,
    {
        self.serve(io, TowerToHyperService::new(service)).await
    }
}

/// What is, or lies on, a connection of this crate, and can be [served](Http::serve).
pub trait Controlled {
    /// The connection's handle.
    fn control(&self) -> Control;

    /// Waits until the client has said which version of HTTP it speaks, or will not say it any more; nothing is taken of what has come.
    /// It is for the [timeout](Http::begin_timeout). If there is nothing to look at it is unknown at once.
    fn poll_begin(&mut self, _cx: &mut Context<'_>) -> Poll<Begun> {
        Poll::Ready(Begun::Unknown)
    }
}

/// What a client has begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It need not be served: it has said nothing, and has gone, or the server shuts down.
    Gone,
    /// That will be seen.
    Unknown,
    /// Something else than HTTP/2's preface.
    Http1,
    /// HTTP/2's preface.
    Http2,
}

impl Controlled for Connection {
    fn control(&self) -> Control {
        Connection::control(self)
    }

    fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<Begun> {
        loop {
            if let Some(begun) = begun(self.input()) {
                return Poll::Ready(begun);
            }
            let seen = self.input().len();
            let more = ready!(self.reader().poll_request(cx, seen));
            if !more.unwrap_or(false) {
                return Poll::Ready(gone(seen));
            }
        }
    }
}

#[cfg(feature = "rustls")]
impl Controlled for TlsConnection {
    fn control(&self) -> Control {
        TlsConnection::control(self)
    }

    fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<Begun> {
        loop {
            if let Some(begun) = begun(self.input()) {
                return Poll::Ready(begun);
            }
            let seen = self.input().len();
            let more = if seen == 0 { self.poll_request(cx) } else { self.poll_more(cx) };
            match ready!(more) {
                Ok(true) => {}
                Ok(false) => return Poll::Ready(gone(seen)),
                // For whoever reads it.
                Err(_) => return Poll::Ready(Begun::Unknown),
            }
        }
    }
}

/// Whoever has said a part and goes is read to the end.
fn gone(seen: usize) -> Begun {
    if seen > 0 { Begun::Unknown } else { Begun::Gone }
}

/// What it is, unless it is a part of HTTP/2's preface.
fn begun(input: &LinkBuffer) -> Option<Begun> {
    let mut front = [0; PREFACE.len()];
    let n = input.peek_to(&mut front);
    if front[..n] != PREFACE[..n] {
        return Some(Begun::Http1);
    }
    (n == PREFACE.len()).then_some(Begun::Http2)
}

/// Builders for either version, if it is to be both.
fn only(builder: &Builder<LocalExecutor>) -> Option<[Builder<LocalExecutor>; 2]> {
    let both = builder.is_http1_available() && builder.is_http2_available();
    both.then(|| [builder.clone().http1_only(), builder.clone().http2_only()])
}

fn into_io_error(error: BoxError) -> io::Error {
    match error.downcast::<::hyper::Error>() {
        Ok(error) => io::Error::other(error),
        Err(error) => match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        },
    }
}

impl Default for Http {
    fn default() -> Http {
        Http::new()
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}
