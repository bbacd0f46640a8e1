//! Spans and events, for whoever listens by `tracing`. Without that feature there is nothing in here.
//!
//! Events are told where no lock is held, and a subscriber that panics over one ends nothing.

#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

use std::fmt;
use std::future::Future;

use duopoll_core::Control;
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::timings;

/// Tells of an event.
macro_rules! tell {
    ($level:ident, $($event:tt)*) => {
        #[cfg(feature = "tracing")]
        if ::tracing::enabled!(target: "duopoll", ::tracing::Level::$level) {
            duopoll_core::report(|| {
                ::tracing::event!(target: "duopoll", ::tracing::Level::$level, $($event)*);
            });
        }
    };
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
    /// What serves a connection.
    pub(crate) struct Serving<F> {
        connection: u64,
        #[pin]
        future: Spanned<F>,
    }
}

impl<F: Future> Future for Serving<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        timings::handles(*this.connection);
        this.future.poll(cx)
    }
}

/// A future that may have a span around it.
#[cfg(feature = "tracing")]
pub(crate) type Spanned<F> = ::tracing::instrument::Instrumented<F>;
#[cfg(not(feature = "tracing"))]
pub(crate) type Spanned<F> = F;

/// Has a future be what serves a connection, in a span of that.
#[cfg(feature = "tracing")]
pub(crate) fn serving<F: Future>(control: &Control, engine: &str, future: F) -> Serving<F> {
    use ::tracing::Instrument;
    let span = ::tracing::info_span!(
        target: "duopoll",
        "connection",
        id = %Id(control),
        peer = peer(control),
        engine,
        poller = std::thread::current().name(),
    );
    Serving { connection: control.id(), future: future.instrument(span) }
}

#[cfg(not(feature = "tracing"))]
#[inline]
pub(crate) fn serving<F: Future>(control: &Control, engine: &str, future: F) -> Serving<F> {
    Serving { connection: control.id(), future }
}

/// The span of a request.
#[cfg(feature = "tracing")]
#[inline]
pub(crate) fn request() -> ::tracing::Span {
    ::tracing::debug_span!(target: "duopoll", "request")
}

/// Polls within a span, if there is one.
#[cfg(feature = "tracing")]
#[inline]
pub(crate) fn within<T>(span: &::tracing::Span, poll: impl FnOnce() -> T) -> T {
    if span.is_disabled() { poll() } else { span.in_scope(poll) }
}

/// There is none.
#[cfg(not(feature = "tracing"))]
pub(crate) struct Span;

#[cfg(not(feature = "tracing"))]
#[inline]
pub(crate) fn request() -> Span {
    Span
}

#[cfg(not(feature = "tracing"))]
#[inline]
pub(crate) fn within<T>(_: &Span, poll: impl FnOnce() -> T) -> T {
    poll()
}

/// Has a future be the work at a request of HTTP.
#[cfg(all(feature = "tracing", feature = "hyper"))]
pub(crate) fn handling_http<F>(span: ::tracing::Span, future: F) -> Spanned<F> {
    use ::tracing::Instrument;
    future.instrument(span)
}

#[cfg(all(feature = "tracing", feature = "hyper"))]
pub(crate) fn http_span<B>(request: &::hyper::Request<B>) -> ::tracing::Span {
    ::tracing::debug_span!(
        target: "duopoll",
        "request",
        method = %request.method(),
        path = request.uri().path(),
        version = ?request.version(),
    )
}

#[cfg(all(not(feature = "tracing"), feature = "hyper"))]
pub(crate) fn handling_http<F>(_: Span, future: F) -> Spanned<F> {
    future
}

#[cfg(all(not(feature = "tracing"), feature = "hyper"))]
pub(crate) fn http_span<B>(request: &::hyper::Request<B>) -> Span {
    Span
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
