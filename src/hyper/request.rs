//! The requests that are under way on a connection, so that it is known not to be idle.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::hyper::body::{Body, Frame, Incoming, SizeHint};
use ::hyper::service::Service;
use ::hyper::{Request, Response};
use pin_project_lite::pin_project;

use crate::trace::{self, Spanned};
use crate::{Control, stats};

/// A request, from its head until the last of its response is handed over, or dropped.
struct UnderWay(Control);

impl UnderWay {
    fn new(control: &Control, has_body: bool) -> UnderWay {
        stats::count_request();
        control.begin_request(has_body);
        UnderWay(control.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// A service whose requests are counted.
pub(super) struct Counted<S> {
    service: S,
    control: Control,
}

impl<S> Counted<S> {
    pub(super) fn new(service: S, control: Control) -> Counted<S> {
        Counted { service, control }
    }
}

impl<S, B> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Response = Response<CountedBody<B>>;
    type Error = S::Error;
    type Future = CountedFuture<Spanned<S::Future>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let has_body = !request.body().is_end_stream();
        let under_way = Some(UnderWay::new(&self.control, has_body));
        let span = trace::http_request(&request);
        CountedFuture { future: trace::within(span, self.service.call(request)), under_way }
    }
}

pin_project! {
    pub(super) struct CountedFuture<F> {
        #[pin]
        future: F,
        under_way: Option<UnderWay>,
    }
}

impl<F, B, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<CountedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.future.poll(cx))?;
        let under_way = this.under_way.take();
        Poll::Ready(Ok(response.map(|body| CountedBody { body, _under_way: under_way })))
    }
}

pin_project! {
    /// The body of a response.
    pub(super) struct CountedBody<B> {
        #[pin]
        body: B,
        _under_way: Option<UnderWay>,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
