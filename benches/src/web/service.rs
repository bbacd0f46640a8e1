//! The services, which every server on hyper runs: a function for hyper, a router of axum, a service of tonic.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::rt::Timer;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tonic::service::Routes;

use super::grpc::Bench;
use super::shape::{App, Ask, CATALOGUE, HELLO, LARGE_BYTES, PIECE_BYTES};

/// What an error of a body or a service becomes.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What serves with a service. The services have different types.
pub trait Serve {
    /// Serves until something fails.
    fn serve<S, B>(self, service: S) -> io::Result<()>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
}

/// Serves with the service of that name.
pub fn serve(app: App, how: impl Serve) -> io::Result<()> {
    match app {
        App::Plain => how.serve(service_fn(plain)),
        App::Json => how.serve(TowerToHyperService::new(router())),
        App::Grpc => how.serve(TowerToHyperService::new(Routes::new(Bench).prepare())),
    }
}

/// What hyper is told, on every runtime.
pub fn configure<E>(builder: &mut Builder<E>, timer: impl Timer + Clone + Send + Sync + 'static) {
    let timeout = Duration::from_secs(30);
    builder.http1().timer(timer.clone()).header_read_timeout(timeout);
    builder.http2().timer(timer);
}

/// A router with one route.
pub fn router() -> Router {
    Router::new().route(Ask::Json.path(), get(async || Json(&*CATALOGUE)))
}

/// Answers what needs no framework.
pub async fn plain<B>(request: Request<B>) -> Result<Response<Answer>, B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let path = request.uri().path();
    let answer = if path == Ask::Hello.path() {
        Answer::Whole(Bytes::from_static(HELLO.as_bytes()))
    } else if path == Ask::Bytes.path() {
        Answer::Whole(LARGE.clone())
    } else if path == Ask::Pieces.path() {
        Answer::Pieces { left: LARGE_BYTES }
    } else if path == Ask::Upload.path() {
        Answer::Whole(count(request.into_body()).await?.to_string().into())
    } else {
        let mut missing = Response::new(Answer::Whole(Bytes::new()));
        *missing.status_mut() = StatusCode::NOT_FOUND;
        return Ok(missing);
    };
    Ok(Response::new(answer))
}

/// Takes a body piece by piece.
async fn count<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<usize, B::Error> {
    let mut bytes = 0;
    while let Some(frame) =
        std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.transpose()?
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

/// Lies ready.
static LARGE: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![b'x'; LARGE_BYTES]));

/// The body of an answer.
pub enum Answer {
    /// In one piece, that nobody copies before hyper.
    Whole(Bytes),
    /// A copy a piece.
    Pieces {
        /// Bytes to come.
        left: usize,
    },
}

impl Answer {
    fn left(&self) -> usize {
        match self {
            Answer::Whole(bytes) => bytes.len(),
            Answer::Pieces { left } => *left,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            Answer::Whole(bytes) => std::mem::take(bytes),
            Answer::Pieces { left } => {
                let start = LARGE_BYTES - *left;
                let end = LARGE_BYTES.min(start + PIECE_BYTES);
                *left = LARGE_BYTES - end;
                Bytes::copy_from_slice(&LARGE[start..end])
            }
        };
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left() as u64)
    }
}
