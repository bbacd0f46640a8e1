//! How HTTP is served.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ::hyper::body::{Body, Incoming};
use ::hyper::rt::{Read, Write};
use ::hyper::server::conn::{http1, http2};
use ::hyper::service::Service;
use ::hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;

use crate::hyper::controlled::Controlled;
use crate::hyper::request::Counted;
use crate::hyper::run::{LocalExecutor, PollerTimer};
use crate::hyper::serve::Serve;
use crate::hyper::settings::{Settings, Versions};

type BoxError = Box<dyn Error + Send + Sync>;

/// How long a client may take for the head of a request, and before it for the first bytes, if nothing else is said.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// What may wait to be sent of each stream of HTTP/2, in bytes, if nothing else is said: a client that reads none of 200 streams holds as much
/// of each.
const SEND_BYTES_MAX: usize = 64 << 10;

/// Serves HTTP/1 and HTTP/2 on connections, whichever the client begins with, for a handler of
/// [`on_connection`](crate::Builder::on_connection). Clones do the same.
///
/// - Connections are kept alive, requests of HTTP/1 may be pipelined, and upgrades are done: `hyper::upgrade::on` in a handler gives an
///   [`Upgraded`](super::upgrade::Upgraded), which is taken apart by `downcast::<Connection>()`, or of a
///   [`TlsConnection`](crate::tls::TlsConnection). Whoever goes on with it watches [`Control::draining`](crate::Control::draining), since
///   a shutdown waits for it, for the whole grace if need be.
/// - When the server shuts down the client is told at once, by `connection: close` or GOAWAY; what it has asked for by then is
///   answered, and connections between requests end. Of pipelined requests the one is answered that is being worked at: the `close`
///   in its reply says that the others are not. A client of HTTP/2 that does not answer the ping behind GOAWAY has the whole grace.
/// - The server's [read timeout](crate::Builder::read_timeout) does not count, since hyper waits for its peer all the time: there is one
///   for heads, below, and how long a body may take is the service's to say, with [`timeout`](crate::time::timeout) around it. Its
///   idle timeout counts while no request is under way.
/// - Each stream of HTTP/2 is a task of the poller's. A panic of a service ends its stream, or its connection of HTTP/1. Streams are
///   no handlers of the server's: their panics are in [`Stats::handler_panics`](crate::Stats::handler_panics) only, as requests are in
///   [`Stats::requests`](crate::Stats::requests).
/// - A connection of HTTP/1 that has asked for nothing for 0.2 to 0.4 seconds, and whose last request had no body, gives hyper's buffers
///   back, 16 KiB, until its next request.
/// - A client has 30 seconds to begin, and by HTTP/1 as many for the head of a request, from the end of the one before; so it ends
///   connections that are idle for so long, too. By HTTP/2 idle ones stay, unless they are
///   [pinged](::hyper::server::conn::http2::Builder::keep_alive_interval) or the server has an
///   [idle timeout](crate::Builder::idle_timeout).
#[derive(Clone)]
pub struct Http(Arc<Settings>);

impl Http {
    /// With what is usual.
    pub fn new() -> Http {
        let (mut http1, mut http2) = (http1::Builder::new(), http2::Builder::new(LocalExecutor));
        http1.timer(PollerTimer).header_read_timeout(HEADER_READ_TIMEOUT);
        http2.timer(PollerTimer).max_send_buf_size(SEND_BYTES_MAX);
        let header_read_timeout = Some(HEADER_READ_TIMEOUT);
        let (versions, begin_timeout) = (Versions::Both, HEADER_READ_TIMEOUT);
        Http(Arc::new(Settings { http1, http2, versions, begin_timeout, header_read_timeout }))
    }

    /// How long a client may take until it has said which version it speaks.
    pub fn begin_timeout(self, timeout: Duration) -> Http {
        self.with(|settings| settings.begin_timeout = timeout)
    }

    /// How long a client of HTTP/1 may take for the head of a request, from the end of the one before. `None`: for ever. What
    /// hyper is told in [`http1`](Http::http1) does not count.
    pub fn header_read_timeout(self, timeout: impl Into<Option<Duration>>) -> Http {
        let timeout = timeout.into();
        self.with(|settings| settings.header_read_timeout = timeout)
    }

    /// Only HTTP/1. Who begins with HTTP/2 has an error.
    pub fn http1_only(self) -> Http {
        self.with(|settings| settings.versions = Versions::Http1)
    }

    /// Only HTTP/2. Who begins with HTTP/1 has an error.
    pub fn http2_only(self) -> Http {
        self.with(|settings| settings.versions = Versions::Http2)
    }

    /// Changes what hyper can be told of HTTP/1.
    ///
    /// ```
    /// # use duopoll::hyper::Http;
    /// let http = Http::new().http1(|http1| {
    ///     http1.max_headers(50).half_close(true);
    /// });
    /// ```
    pub fn http1(self, change: impl FnOnce(&mut http1::Builder)) -> Http {
        self.with(|settings| change(&mut settings.http1))
    }

    /// Changes what hyper can be told of HTTP/2: windows, streams, pings.
    ///
    /// ```
    /// # use duopoll::hyper::Http;
    /// # use std::time::Duration;
    /// let http = Http::new().http2(|http2| {
    ///     http2.max_concurrent_streams(100).keep_alive_interval(Duration::from_secs(20));
    /// });
    /// ```
    pub fn http2(self, change: impl FnOnce(&mut http2::Builder<LocalExecutor>)) -> Http {
        self.with(|settings| change(&mut settings.http2))
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Http {
        let settings = Arc::make_mut(&mut self.0);
        change(settings);
        settings.http1.header_read_timeout(settings.header_read_timeout);
        self
    }

    /// Serves a connection with a service of hyper's until it ends, or the server shuts down and what was asked for is
    /// answered. `io` is a [`Connection`](crate::Connection), or what gives one with [`Controlled`], such as TLS over it.
    ///
    /// # Errors
    /// What has ended the connection before its time: of the network, or of a client that does not speak HTTP. That the head of
    /// a request took too long is none, since clients that are idle end like this.
    /// [`Unsupported`](io::ErrorKind::Unsupported) on a thread that is no poller's.
    ///
    /// # Cancellation
    /// Dropping it drops the connection; streams of HTTP/2 that are being handled end when they notice.
    pub fn serve<C, S, B>(
        &self,
        io: C,
        service: S,
    ) -> impl Future<Output = io::Result<()>> + use<C, S, B>
    where
        C: Controlled + Read + Write + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + 'static,
        S::Future: 'static,
        S::Error: Into<BoxError>,
        B: Body + 'static,
        B::Error: Into<BoxError>,
    {
        let service = Counted::new(service, io.control());
        Serve::new(self.0.clone(), io, service)
    }

    /// As [`serve`](Http::serve), with a service of tower's, such as an axum `Router` or tonic's `Routes`.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancellation
    /// As there.
    pub fn serve_tower<C, S, B>(
        &self,
        io: C,
        service: S,
    ) -> impl Future<Output = io::Result<()>> + use<C, S, B>
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
        self.serve(io, TowerToHyperService::new(service))
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
