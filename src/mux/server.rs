//! The end that is called.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{self, AssertUnwindSafe};
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

/// Serves calls on a connection until the peer ends it and those that are under way are answered. For a
/// handler of [`on_connection`](crate::Builder::on_connection), on whose poller it runs.
///
/// `handler` is given a request, and gives its reply. Up to `calls_max` are under way at once; beyond that nothing is received,
/// not even pings: a client makes no more at once than its [own limit](crate::mux::ClientOptions::calls_max) says, which had
/// better not be above this.
/// Replies are sent as they are ready. An error of the handler is sent as a [failure](Kind::Failure) with its text, and so is
/// a panic, without
/// one, which the pollers count and the server does not; the other calls go on. Once as many calls have been under way at
/// once, a call allocates nothing but what its handler does.
///
/// While it waits for requests the connection's idle timeout counts, also with calls under way: it has to be longer than they
/// take. The read timeout counts within a message only.
///
/// When the server shuts down, the client is [told](Kind::GoingAway), requests that come later are
/// [refused](Kind::Refused), and it ends when those are answered that are under way.
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
        match handled(async { handler(request).await }).await {
            Ok(mut reply) => send(protocol, sender, Kind::Reply, number, &mut reply).await,
            Err(error) => fail(protocol, sender, number, &error).await,
        }
    };
    let calls = RefCell::new(Calls::new(calls_max.max(1)));
    let going_away = Cell::new(false);
    let mut receiving = pin!(async {
        let mut in_a_row = 0;
        while let Some((head, body)) = next(protocol, &mut reader, sender, &going_away).await? {
            in_a_row += 1;
            if in_a_row % REQUESTS_MAX == 0 {
                yield_now().await;
            }
            let empty = &mut LinkBuffer::new();
            match head.kind {
                Kind::Request if going_away.get() => {
                    send(protocol, sender, Kind::Refused, head.number, empty).await?;
                }
                Kind::Request => {
                    poll_fn(|cx| calls.borrow_mut().poll_room(cx)).await;
                    calls.borrow_mut().start(answer(head.number, body))?;
                }
                Kind::Ping => send(protocol, sender, Kind::Pong, head.number, empty).await?,
                kind => return Err(invalid(format!("{kind:?} from a client"))),
            }
        }
        Ok(())
    });
    let mut received = false;
    let mut cut = Ok(());
    let ended = poll_fn(|cx| {
        // First, since that makes room.
        calls.borrow_mut().poll(cx)?;
        if !received {
            match receiving.as_mut().poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => received = true,
                // Within a message: those before it are answered.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    (received, cut) = (true, Err(error));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        match (received || going_away.get()) && calls.borrow().is_empty() {
            true => Poll::Ready(io::Result::Ok(())),
            false => Poll::Pending,
        }
    });
    ended.await?;
    cut?;
    if going_away.get() {
        send(protocol, sender, Kind::GoingAway, 0, &mut LinkBuffer::new()).await?;
    }
    Ok(())
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

/// The next message; none at the end. Tells the client when the server begins to shut down.
async fn next<P: Protocol>(
    protocol: &P,
    reader: &mut Reader,
    sender: &Sender,
    going_away: &Cell<bool>,
) -> io::Result<Option<(Head, Slice)>> {
    if !going_away.get() && !reader.next_request().await? {
        if !reader.control().is_draining() {
            return Ok(None);
        }
        send(protocol, sender, Kind::GoingAway, 0, &mut LinkBuffer::new()).await?;
        going_away.set(true);
        // The grace counts from now on, and who is answered may have nothing more to say.
        reader.control().set_read_timeout(None);
    }
    let mut head = None;
    let body =
        reader.frame(P::HEADER_BYTES, |header| Ok(head.insert(protocol.read(header)?).body_bytes));
    match body.await {
        Ok(body) => Ok(head.map(|head| (head, body))),
        Err(error) => match error.kind() {
            io::ErrorKind::UnexpectedEof if reader.buffer_mut().is_empty() => Ok(None),
            _ => Err(error),
        },
    }
}

/// Says that there is no reply, and why.
async fn fail<P: Protocol>(
    protocol: &P,
    sender: &Sender,
    number: u64,
    why: &io::Error,
) -> io::Result<()> {
    // A text of the user's, who may panic.
    let text = panic::catch_unwind(AssertUnwindSafe(|| why.to_string())).unwrap_or_default();
    let mut message = LinkBuffer::new();
    let body = &mut LinkBuffer::from(text.into_bytes());
    // If that cannot be said either, the connection ends: whoever called would wait for ever.
    frame(protocol, Kind::Failure, number, body, &mut message)?;
    sender.send(&mut message).await
}

/// Sends a message. What cannot be said of a call is a failure of it; what else cannot be said is left out.
async fn send<P: Protocol>(
    protocol: &P,
    sender: &Sender,
    kind: Kind,
    number: u64,
    body: &mut LinkBuffer,
) -> io::Result<()> {
    let mut message = LinkBuffer::new();
    match frame(protocol, kind, number, body, &mut message) {
        Ok(()) => sender.send(&mut message).await,
        Err(error) if kind == Kind::Reply => fail(protocol, sender, number, &error).await,
        Err(_) => Ok(()),
    }
}
