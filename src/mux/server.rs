//! The end that is called.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use duopoll_core::{LinkBuffer, Reader, Sender, Slice, contain};

use crate::caught::caught;
use crate::connection::Connection;
use crate::mux::calls::Calls;
use crate::mux::protocol::{Head, Kind, Protocol, frame, invalid};
use crate::stats::count_handler_panic;
use crate::task::yield_now;

/// As many calls at once as most servers need on one connection.
pub const CALLS_MAX: usize = 1024;

/// Requests that are begun in a row while other tasks wait.
const REQUESTS_MAX: u32 = 128;

/// Serves calls on a connection until the peer ends it, or the server shuts down and those that are under way are answered. For a
/// handler of [`on_connection`](crate::Builder::on_connection), on whose poller it runs.
///
/// `handler` is given a request, and gives its reply. Up to `calls_max` are under way at once; beyond that nothing is received.
/// Replies are sent as they are ready. An error of the handler is sent as a [failure](Kind::Failure) with its text, and so is a panic, without
/// one; the other calls go on. Once as many calls have been under way at once, a call allocates nothing but what its handler does.
///
/// # Errors
/// What ends the connection: those of a [`Reader`] and of a [`Sender`]; [`InvalidData`](io::ErrorKind::InvalidData) for what is
/// no request.
///
/// # Cancellation
/// Dropping it drops the calls that are under way, and the connection.
pub async fn serve<P, H>(
    connection: Connection,
    protocol: P,
    calls_max: usize,
    handler: H,
) -> io::Result<()>
where
    P: Protocol,
    H: AsyncFn(Slice) -> io::Result<LinkBuffer>,
{
    let (mut reader, writer) = connection.into_split();
    let sender = writer.into_sender()?;
    let (protocol, handler, sender) = (&protocol, &handler, &sender);
    let answer = |number: u64, request: Slice| async move {
        let (kind, mut body) = match handled(handler(request)).await {
            Ok(reply) => (Kind::Reply, reply),
            Err(error) => (Kind::Failure, LinkBuffer::from(error.to_string().into_bytes())),
        };
        send(protocol, sender, kind, number, &mut body).await
    };
    let calls = RefCell::new(Calls::new(calls_max.max(1)));
    let mut receiving = pin!(async {
        let mut in_a_row = 0;
        while let Some((head, body)) = next(protocol, &mut reader).await? {
            in_a_row += 1;
            if in_a_row % REQUESTS_MAX == 0 {
                yield_now().await;
            }
            match head.kind {
                Kind::Request => {
                    poll_fn(|cx| calls.borrow_mut().poll_room(cx)).await;
                    calls.borrow_mut().start(answer(head.number, body))?;
                }
                Kind::Ping => {
                    send(protocol, sender, Kind::Pong, head.number, &mut LinkBuffer::new()).await?;
                }
                kind => return Err(invalid(format!("{kind:?} from a client"))),
            }
        }
        Ok(())
    });
    let mut received = false;
    poll_fn(|cx| {
        // First, since that makes room.
        let answered = calls.borrow_mut().poll(cx)?;
        if !received {
            received = receiving.as_mut().poll(cx)?.is_ready();
        }
        match received && (answered.is_ready() || calls.borrow_mut().poll(cx)?.is_ready()) {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    })
    .await
}

/// What a handler gives; a panic is an error.
async fn handled(handling: impl Future<Output = io::Result<LinkBuffer>>) -> io::Result<LinkBuffer> {
    let mut handling = pin!(handling);
    let handled = poll_fn(|cx| caught(|| handling.as_mut().poll(cx)));
    handled.await.unwrap_or_else(|panic| {
        count_handler_panic();
        contain("what a handler has panicked with", || drop(panic));
        Err(io::Error::other("the handler has panicked"))
    })
}

/// The next message; none at the end.
async fn next<P: Protocol>(protocol: &P, reader: &mut Reader) -> io::Result<Option<(Head, Slice)>> {
    if !reader.request().await? {
        return Ok(None);
    }
    let mut head = None;
    let body =
        reader.frame(P::HEADER_BYTES, |header| Ok(head.insert(protocol.read(header)?).body_bytes));
    let body = body.await?;
    Ok(head.map(|head| (head, body)))
}

async fn send<P: Protocol>(
    protocol: &P,
    sender: &Sender,
    kind: Kind,
    number: u64,
    body: &mut LinkBuffer,
) -> io::Result<()> {
    let mut message = LinkBuffer::new();
    frame(protocol, kind, number, body, &mut message)?;
    sender.send(&mut message).await
}
