//! HTTP/3 on QUIC connections: each request goes to the router as one that came by HTTP/1 or 2 does.

use std::error::Error;
use std::future::pending;
use std::mem;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Response;
use bytes::Buf;
use duopoll::quinn::Endpoints;
use duopoll::task::{TaskGroup, yield_now};
use duopoll::time::{now, sleep};
use futures::future::{Either, poll_fn, select};
use futures::stream;
use h3::server::{RequestResolver, RequestStream};
use quinn::{Incoming, VarInt};
use tower_service::Service;

/// `H3_NO_ERROR`.
const NO_ERROR: VarInt = VarInt::from_u32(0x100);
/// When nothing of an answer was sent for so long, its client has it, or has stopped to read.
const QUIET: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(50);
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
    let quic = incoming.await?;
    let mut builder = h3::server::builder();
    let builder = builder.max_field_section_size(HEAD_BYTES_MAX);
    let mut connection = builder.build::<_, Bytes>(h3_quinn::Connection::new(quic.clone())).await?;
    let answers = TaskGroup::new();
    let begin = |request| {
        let router = router.clone();
        drop(answers.spawn_local(async move { answer(request, router).await }));
    };
    let mut closing = pin!(group.closing());
    while let Either::Left((next, _)) = select(pin!(connection.accept()), closing.as_mut()).await {
        let Some(request) = next? else { return Ok(()) };
        begin(request);
    }

    // GOAWAY. What is under way is answered; who asks for more is told that he is too late.
    connection.shutdown(0).await?;
    let refuses = async {
        while let Ok(Some(request)) = connection.accept().await {
            begin(request);
        }
        // It is not dropped here: without it, nothing more is sent.
        pending::<()>().await;
    };
    let seen_off = async {
        answers.wait().await;
        see_off(&quic).await;
    };
    select(pin!(seen_off), pin!(refuses)).await;
    quic.close(NO_ERROR, b"");
    // Its task sends that, before the pollers end.
    yield_now().await;
    Ok(())
}

/// Waits until the last answers have arrived, as far as one can tell: quinn has them, and sends nothing of them any more.
async fn see_off(quic: &quinn::Connection) {
    let mut sent = quic.stats().frame_tx.stream;
    let mut since = now();
    while since.elapsed() < QUIET && quic.close_reason().is_none() {
        sleep(LOOK).await;
        let now_sent = quic.stats().frame_tx.stream;
        if mem::replace(&mut sent, now_sent) != now_sent {
            since = now();
        }
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
