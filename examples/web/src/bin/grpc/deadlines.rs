//! Deadlines of calls, by the timers of the pollers. tonic's own need tokio's.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use duopoll::time::{self, Sleep};
use http_body::{Body, Frame, SizeHint};
use hyper::{HeaderMap, Request, Response};
use tonic::Status;
use tower_service::Service;

/// A service whose calls end when the time is over that their header `grpc-timeout` gives them: what was begun for them is dropped, and
/// they are answered with DEADLINE_EXCEEDED. Around a server it keeps calls from going on for nobody; around a client it keeps a
/// server from being waited for.
#[derive(Clone, Debug)]
pub(crate) struct Deadlines<S>(pub(crate) S);

impl<S, B, R> Service<Request<B>> for Deadlines<S>
where
    S: Service<Request<B>, Response = Response<R>, Future: 'static>,
{
    type Response = Response<Limited<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let end = timeout_of(request.headers()).map(time::sleep);
        let answer = self.0.call(request);
        Box::pin(async move {
            let Some(end) = end else {
                return Ok(answer.await?.map(|body| Limited { body: Some(body), end: None }));
            };
            match time::timeout_at(end.deadline(), answer).await {
                Ok(answer) => Ok(answer?.map(|body| Limited { body: Some(body), end: Some(end) })),
                Err(_) => Ok(late().into_http::<()>().map(|()| Limited { body: None, end: None })),
            }
        })
    }
}

fn late() -> Status {
    Status::deadline_exceeded("its time was over")
}

/// At most eight digits and a unit, as the protocol has it. What is none is not heeded.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// A body that ends in time.
#[derive(Debug)]
pub(crate) struct Limited<R> {
    /// None when it was too late.
    body: Option<R>,
    end: Option<Sleep>,
}

impl<R: Body + Unpin> Body for Limited<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        // What is there comes first.
        if let frame @ Poll::Ready(_) = Pin::new(body).poll_frame(cx) {
            return frame;
        }
        let Some(end) = &mut this.end else { return Poll::Pending };
        ready!(Pin::new(end).poll(cx));
        this.body = None;
        let trailers = late().into_http::<()>().into_parts().0.headers;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
