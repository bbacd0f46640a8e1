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
use crate::hyper::run::{LocalExecutor, PollerTimer};
use crate::time::timeout;
#[cfg(feature = "rustls")]
use crate::tls::TlsConnection;
use crate::{LinkBuffer, Watch};

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
///   gives what can be [taken apart](::hyper::upgrade::Upgraded::downcast) into the [`Connection`].
/// - When the server shuts down the client is told at once, by `connection: close` or GOAWAY; what it has asked for by then is
///   answered, and connections between requests end.
/// - Each stream of HTTP/2 is a task of the poller's. A panic of a service ends its stream, or its connection of HTTP/1.
/// - A client has 30 seconds to begin, and by HTTP/1 as many for the head of a request, from the end of the one before; so it ends
///   connections that are idle for so long, too. By HTTP/2 idle ones stay, unless they are
///   [pinged](::hyper::server::conn::http2::Builder::keep_alive_interval) or the server has an
///   [idle timeout](crate::Builder::idle_timeout).
#[derive(Clone)]
pub struct Http {
    builder: Builder<LocalExecutor>,
    begin_timeout: Duration,
}

impl Http {
    /// With what is usual.
    pub fn new() -> Http {
        let mut builder = Builder::new(LocalExecutor);
        builder.http1().timer(PollerTimer).header_read_timeout(HEADER_READ_TIMEOUT);
        builder.http2().timer(PollerTimer).max_send_buf_size(SEND_BYTES_MAX);
        Http { builder, begin_timeout: HEADER_READ_TIMEOUT }
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
        self
    }

    /// Serves a connection with a service of hyper's until it ends, or the server shuts down and what was asked for is
    /// answered. `io` is a [`Connection`], or what gives one with [`Controlled`], such as TLS over it.
    ///
    /// # Errors
    /// What has ended the connection before its time: of the network, or of a client that does not speak HTTP. That the head of
    /// a request took too long is none, since clients that are idle end like this.
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
        let mut draining = io.control().draining();
        let begins = timeout(self.begin_timeout, begin(&mut io, &mut draining));
        if !begins.await.unwrap_or(false) {
            return Ok(());
        }
        let mut told = false;
        let mut serving = pin!(self.builder.serve_connection_with_upgrades(io, service));
        let served = poll_fn(|cx| {
            if !told && Pin::new(&mut draining).poll(cx).is_ready() {
                told = true;
                serving.as_mut().graceful_shutdown();
            }
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

/// Waits until a client has begun. False if it need not be served: the server shuts down before.
async fn begin(io: &mut impl Controlled, draining: &mut Watch) -> bool {
    poll_fn(|cx| match io.poll_begin(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => Pin::new(&mut *draining).poll(cx).map(|()| false),
    })
    .await
}

/// What is, or lies on, a connection of this crate, and can be [served](Http::serve).
pub trait Controlled {
    /// The connection's handle.
    fn control(&self) -> crate::Control;

    /// Ready when the client has said which version of HTTP it speaks, or will not say it any more; nothing is taken of it. It is
    /// for the [timeout](Http::begin_timeout), and at once if there is nothing to look at.
    fn poll_begin(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

macro_rules! implement {
    ($stream:ty) => {
        impl Controlled for $stream {
            fn control(&self) -> crate::Control {
                <$stream>::control(self)
            }

            fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
                while !has_begun(self.input()) {
                    match ready!(self.reader().poll_more(cx)) {
                        Ok(true) => {}
                        // Whoever reads it is told.
                        Ok(false) | Err(_) => break,
                    }
                }
                Poll::Ready(())
            }
        }
    };
}

implement!(Connection);
#[cfg(feature = "rustls")]
implement!(TlsConnection);

/// Whether it is more than a part of HTTP/2's preface.
fn has_begun(input: &LinkBuffer) -> bool {
    let mut front = [0; PREFACE.len()];
    let n = input.peek_to(&mut front);
    n == PREFACE.len() || front[..n] != PREFACE[..n]
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
