//! HTTP/3 on QUIC connections: each request goes to the router as one that came by HTTP/1 or 2 does.

use std::error::Error;
use std::pin::pin;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Response;
use bytes::Buf;
use duopoll::quinn::Endpoints;
use duopoll::task::{TaskGroup, spawn_local};
use futures::future::{Either, FutureExt, poll_fn, select};
use futures::stream;
use h3::server::{RequestResolver, RequestStream};
use quinn::Incoming;
use tower_service::Service;

/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: u64 = 64 << 10;

type Failure = Box<dyn Error + Send + Sync>;

/// Answers what comes, in tasks of a group, until that is to end.
pub(crate) fn serve(endpoints: &Endpoints, router: &Router, connections: &TaskGroup) {
    let (router, connections) = (router.clone(), connections.clone());
    endpoints.serve(async move |incoming| {
        let (router, group) = (router.clone(), connections.clone());
        // Who breaks the rules is told by the protocol, and nobody else needs to know.
        drop(connections.spawn_local(async move { go_on(incoming, &router, &group).await }));
    });
}

/// A connection, until its client is done or the group is to end.
async fn go_on(incoming: Incoming, router: &Router, group: &TaskGroup) -> Result<(), Failure> {
    let connection = h3_quinn::Connection::new(incoming.await?);
    let mut builder = h3::server::builder();
    let mut connection =
        builder.max_field_section_size(HEAD_BYTES_MAX).build::<_, Bytes>(connection).await?;
    let mut closing = pin!(group.closing().fuse());
    loop {
        let next = match select(pin!(connection.accept()), closing.as_mut()).await {
            Either::Left((next, _)) => Some(next?),
            Either::Right(_) => None,
        };
        let Some(next) = next else {
            // GOAWAY: what is under way is answered, and nothing more.
            connection.shutdown(0).await?;
            continue;
        };
        let Some(request) = next else { return Ok(()) };
        let router = router.clone();
        drop(spawn_local(async move { answer(request, router).await }));
    }
}

async fn answer(
    request: RequestResolver<h3_quinn::Connection, Bytes>,
    mut router: Router,
) -> Result<(), Failure> {
    let (request, stream) = request.resolve_request().await?;
    let (mut send, receive) = stream.split();
    let response = router.call(request.map(|()| received(receive))).await?;
    let (head, body) = response.into_parts();
    send.send_response(Response::from_parts(head, ())).await?;
    let mut body = pin!(body);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(piece) => send.send_data(piece).await?,
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { continue };
                send.send_trailers(trailers).await?;
            }
        }
    }
    Ok(send.finish().await?)
}

/// A request's body, as it comes.
fn received(stream: RequestStream<h3_quinn::RecvStream, Bytes>) -> Body {
    Body::from_stream(stream::unfold(stream, |mut stream| async move {
        let piece = stream.recv_data().await.transpose()?;
        let piece = piece.map(|mut piece| piece.copy_to_bytes(piece.remaining()));
        Some((piece, stream))
    }))
}
