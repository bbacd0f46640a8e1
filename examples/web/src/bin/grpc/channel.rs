//! A connection as what the clients that tonic generates make calls over, without tokio's runtime.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use duopoll::hyper::{LocalExecutor, PollerTimer};
use duopoll::task;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::rt::{Read, Write};
use hyper::{Request, Response};
use tonic::body::Body;
use tower_service::Service;

/// Calls over one connection of HTTP/2, many at once. Clones share it.
#[derive(Clone)]
pub(crate) struct Channel(http2::SendRequest<Body>);

impl Channel {
    /// Over a connection, or TLS over one. What keeps it going is a task of this thread's poller, and so are the calls' streams; it
    /// ends when the last clone is gone and its calls are done, or when the server has said that it goes away.
    pub(crate) async fn over<C>(io: C) -> hyper::Result<Channel>
    where
        C: Read + Write + Unpin + 'static,
    {
        let mut builder = http2::Builder::new(LocalExecutor);
        let (sender, connection) = builder.timer(PollerTimer).handshake(io).await?;
        // What ends it is the calls' to tell.
        task::spawn_local(connection);
        Ok(Channel(sender))
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
