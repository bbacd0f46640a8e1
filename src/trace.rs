//! Spans and events, for whoever listens by `tracing`. Without that feature there is nothing in here.
//!
//! They are told where no lock is held, and a subscriber that panics over one ends nothing.

#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use duopoll_core::Control;
use pin_project_lite::pin_project;

use crate::timings;
use span::Span;

/// Tells of an event.
macro_rules! tell {
    ($level:ident, $($event:tt)*) => {
        #[cfg(feature = "tracing")]
        if span::is_heard(::tracing::Level::$level) {
            duopoll_core::report(|| {
                ::tracing::event!(target: "duopoll", ::tracing::Level::$level, $($event)*);
            });
        }
    };
}

/// A span, if anybody listens.
macro_rules! span {
    ($level:ident, $name:literal, $($fields:tt)*) => {{
        #[cfg(feature = "tracing")]
        let span = if span::is_heard(::tracing::Level::$level) {
            Span::new(|| ::tracing::span!(target: "duopoll", ::tracing::Level::$level, $name, $($fields)*))
        } else {
            None
        };
        #[cfg(not(feature = "tracing"))]
        let span = None;
        span
    }};
}

pub(crate) fn poller_started(engine: &str, tier: &str) {
    tell!(DEBUG, engine, tier, "poller started");
}

pub(crate) fn poller_ended() {
    tell!(DEBUG, "poller ended");
}

/// Why io_uring is passed over.
pub(crate) fn falls_back(reason: &str) {
    tell!(INFO, engine = "epoll", reason, "fallback");
}

pub(crate) fn listens(address: &impl fmt::Display) {
    tell!(INFO, %address, "listening");
}

/// Somebody was accepted who is not served, since this is so.
pub(crate) fn refused(why: &impl fmt::Display) {
    tell!(DEBUG, %why, "refused");
}

/// Somebody was accepted, and waits for a place.
pub(crate) fn awaits_place() {
    tell!(DEBUG, "waiting for a place among the connections");
}

pub(crate) fn accepted(control: &Control) {
    tell!(DEBUG, id = %Id(control), peer = peer(control), "accepted");
}

pub(crate) fn dialed(control: &Control, target: &impl fmt::Display) {
    tell!(DEBUG, id = %Id(control), peer = peer(control), %target, "dialed");
}

pub(crate) fn dial_failed(error: &std::io::Error) {
    tell!(DEBUG, %error, "dial failed");
}

/// How far a server's shutdown is.
pub(crate) fn shutdown(address: &impl fmt::Display, phase: &str, open: usize) {
    tell!(INFO, %address, phase, open, "shutdown");
}

/// A server's shutdown is over.
pub(crate) fn shut_down(address: &impl fmt::Display, forced: usize) {
    tell!(INFO, %address, phase = "over", forced, "shutdown");
}

pin_project! {
    /// A future that may have a span around it.
    pub(crate) struct Spanned<F> {
        span: Option<Span>,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Spanned<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.span {
            Some(span) => span.within(|| this.future.poll(cx)),
            None => this.future.poll(cx),
        }
    }
}

pin_project! {
    /// What serves a connection.
    pub(crate) struct Serving<F> {
        // In a box: every connection has room for it, whether anybody looks or not.
        watched: Option<Box<Watched>>,
        #[pin]
        future: F,
    }
}

/// A connection at whose handler somebody looks.
struct Watched {
    connection: u64,
    span: Option<Span>,
}

impl<F: Future> Future for Serving<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(watched) = this.watched else { return this.future.poll(cx) };
        timings::handles(watched.connection);
        match &watched.span {
            Some(span) => span.within(|| this.future.poll(cx)),
            None => this.future.poll(cx),
        }
    }
}

/// Has a future be what serves a connection, in a span of that. `measures`: its poller looks how long its handlers take.
pub(crate) fn serving<F: Future>(
    control: &Control,
    engine: &str,
    measures: bool,
    future: F,
) -> Serving<F> {
    let span = span!(
        INFO,
        "connection",
        id = %Id(control),
        peer = peer(control),
        engine,
        poller = std::thread::current().name(),
    );
    let watched = (measures || span.is_some()).then(|| {
        let connection = control.id();
        Box::new(Watched { connection, span })
    });
    Serving { watched, future }
}

/// The span of a request.
#[inline]
pub(crate) fn request() -> Option<Span> {
    span!(DEBUG, "request",)
}

/// The same of one of HTTP.
#[cfg(feature = "hyper")]
pub(crate) fn http_request<B>(request: &::hyper::Request<B>) -> Option<Span> {
    span!(
        DEBUG,
        "request",
        method = %request.method(),
        path = request.uri().path(),
        version = ?request.version(),
    )
}

/// Has a future be in a span.
#[inline]
pub(crate) fn within<F>(span: Option<Span>, future: F) -> Spanned<F> {
    Spanned { span, future }
}

#[cfg(feature = "tracing")]
fn peer(control: &Control) -> Option<::tracing::field::DisplayValue<std::net::SocketAddr>> {
    control.peer_addr().map(::tracing::field::display)
}

/// A connection's number, as logs have it.
#[cfg(feature = "tracing")]
struct Id<'a>(&'a Control);

#[cfg(feature = "tracing")]
impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0.id())
    }
}

/// Spans of which a subscriber that panics ends nothing.
#[cfg(feature = "tracing")]
mod span {
    use ::tracing::Level;
    use ::tracing::level_filters::LevelFilter;
    use duopoll_core::contain;

    /// Whether anybody listens to that. Asks no subscriber, who may panic.
    #[inline]
    pub(super) fn is_heard(level: Level) -> bool {
        level <= LevelFilter::current()
    }

    /// In a box: every connection has room for it, whether anybody listens or not.
    pub(crate) struct Span(Option<Box<::tracing::Span>>);

    impl Span {
        #[cold]
        pub(super) fn new(make: impl FnOnce() -> ::tracing::Span) -> Option<Span> {
            let mut made = None;
            contain("a subscriber of tracing", || made = Some(make()));
            made.filter(|span| !span.is_disabled()).map(|span| Span(Some(Box::new(span))))
        }

        /// Polls within it.
        #[cold]
        pub(super) fn within<T>(&self, poll: impl FnOnce() -> T) -> T {
            let _entered = self.0.as_deref().and_then(Entered::new);
            poll()
        }
    }

    impl Drop for Span {
        fn drop(&mut self) {
            let span = self.0.take();
            contain("a subscriber of tracing", || drop(span));
        }
    }

    struct Entered<'a>(Option<::tracing::span::Entered<'a>>);

    impl Entered<'_> {
        #[cold]
        fn new(span: &::tracing::Span) -> Option<Entered<'_>> {
            let mut entered = None;
            contain("a subscriber of tracing", || entered = Some(span.enter()));
            entered.map(|entered| Entered(Some(entered)))
        }
    }

    impl Drop for Entered<'_> {
        fn drop(&mut self) {
            let entered = self.0.take();
            contain("a subscriber of tracing", || drop(entered));
        }
    }
}

/// There are none.
#[cfg(not(feature = "tracing"))]
mod span {
    pub(crate) enum Span {}

    impl Span {
        pub(super) fn within<T>(&self, _: impl FnOnce() -> T) -> T {
            match *self {}
        }
    }
}
