//! The handler of a connection: runs what has arrived, and waits for the rest of what has arrived in part.
//!
//! A client that has subscribed is another matter: its handler does not return, since messages may come for it at any time. It
//! waits for requests and messages at once.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use duopoll::{Connection, LinkBuffer, Reader, Writer};

use crate::client::Client;
use crate::clock::clock;
use crate::commands;
use crate::reply::Reply;
use crate::resp::{self, Parser, Step};
use crate::session::Session;
use crate::store::SharedStore;

/// Replies staged before they are flushed although more requests wait, in bytes. With the watermark of the
/// connection this bounds what a client costs that sends and never reads.
const STAGED_BYTES_MAX: usize = 256 << 10;
/// A request that is longer than this and not complete moves out of the input piece by piece, so that the input
/// never has to be copied together as a whole.
pub(crate) const IN_PLACE_BYTES_MAX: usize = 256 << 10;
/// Scratch memory that is kept for the next connection, in bytes and in arguments.
const SCRATCH_MAX: usize = 64 << 10;

/// What a handler works with. It outlives every wait, so a wait that is dropped loses nothing.
#[derive(Default)]
struct Scratch {
    parser: Parser,
    /// Replies, before they are staged.
    out: Vec<u8>,
}

thread_local! {
    /// It is in use as long as a call of the handler. The memory of the last one serves the next.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Answers what has arrived, and the rest of a request that has arrived in part.
///
/// # Errors
/// Those of the connection.
pub(crate) async fn serve(
    store: &SharedStore,
    session: &mut Session,
    connection: &mut Connection,
) -> io::Result<()> {
    let mut scratch = SCRATCH.take();
    let result = answer(&mut scratch, session, store, connection).await;
    if scratch.out.capacity() <= SCRATCH_MAX && scratch.parser.capacity() <= SCRATCH_MAX {
        scratch.parser.reset();
        scratch.out.clear();
        SCRATCH.set(scratch);
    }
    result
}

async fn answer(
    scratch: &mut Scratch,
    session: &mut Session,
    store: &SharedStore,
    connection: &mut Connection,
) -> io::Result<()> {
    let (reader, writer) = connection.split();
    loop {
        match run_arrived(scratch, session, store, reader.buffer_mut(), writer)? {
            Next::Return if session.is_subscriber() => {
                writer.flush().await?;
                let mut request = pin!(reader.next_request());
                if !beside(&session.client, writer, |cx| request.as_mut().poll(cx)).await?? {
                    return Ok(());
                }
            }
            // The event loop flushes.
            Next::Return => return Ok(()),
            Next::Flush => writer.flush().await?,
            Next::Fill(bytes) => {
                writer.flush().await?;
                let filled = match session.is_subscriber() {
                    true => fill_beside(&session.client, reader, writer, bytes).await,
                    false => reader.fill(bytes).await,
                };
                match filled {
                    // A client that leaves within a request is none of the server's errors.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    filled => filled?,
                }
            }
            Next::Close => {
                writer.flush().await?;
                reader.buffer_mut().clear();
                reader.close();
                return Ok(());
            }
        }
    }
}

async fn fill_beside(
    client: &Client,
    reader: &mut Reader,
    writer: &mut Writer,
    bytes: usize,
) -> io::Result<()> {
    let mut filling = pin!(reader.fill(bytes));
    beside(client, writer, |cx| filling.as_mut().poll(cx)).await?
}

/// Waits for something, and sends the messages that come meanwhile.
async fn beside<T>(
    client: &Client,
    writer: &mut Writer,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> io::Result<T> {
    loop {
        let waited = poll_fn(|cx| match poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => client.outbox.poll(cx).map(|()| None),
        });
        if let Some(result) = waited.await {
            return Ok(result);
        }
        client.outbox.take(writer.buffer_mut());
        writer.flush().await?;
    }
}

/// What is to be done when the requests that have arrived are run.
enum Next {
    /// Nothing: the input is empty.
    Return,
    /// Flush, and go on with the input.
    Flush,
    /// Flush, and wait until the input has so many bytes.
    Fill(usize),
    /// Flush, and end the connection.
    Close,
}

/// Runs every request that is in the input, under one lock of the store.
fn run_arrived(
    scratch: &mut Scratch,
    session: &mut Session,
    shared: &SharedStore,
    input: &mut LinkBuffer,
    writer: &mut Writer,
) -> io::Result<Next> {
    let Scratch { parser, out } = scratch;
    let mut store = shared.lock();
    store.tick();
    if session.is_subscriber() {
        // What was published before these requests are run is told before they are answered.
        session.client.outbox.take(writer.buffer_mut());
    }
    let mut reply = Reply::new(out, writer, session.resp3);
    let next = loop {
        let chunk = input.first_chunk();
        let mut done = 0;
        let step = loop {
            let rest = &chunk[done..];
            parser.is_stranger = !session.authenticated;
            match parser.parse(rest) {
                Ok(Step::Request) => {
                    commands::run(&mut store, session, &mut reply, parser.args(rest));
                    done += parser.finish();
                    if reply.is_closing() || reply.staged_len() >= STAGED_BYTES_MAX {
                        break Ok(Step::Request);
                    }
                }
                other => break other,
            }
        };
        let seen = chunk.len() - done;
        input.skip(done)?;
        // How much input, from its front, the parser wants to see in one piece.
        let wanted = match step {
            Ok(Step::Request) => break if reply.is_closing() { Next::Close } else { Next::Flush },
            Ok(Step::Line) if input.is_empty() && parser.is_idle() => break Next::Return,
            Ok(Step::Line) => resp::line_end(input, seen),
            Ok(Step::Bytes(bytes)) => bytes,
            Ok(Step::Large(len)) => {
                parser.cut(input)?;
                if input.len() < len + 2 {
                    break Next::Fill(len + 2);
                }
                parser.take_large(input, len)?;
                continue;
            }
            Err(error) => {
                reply.error(&error);
                break Next::Close;
            }
        };
        if parser.position() > IN_PLACE_BYTES_MAX {
            parser.cut(input)?;
        } else if input.len() >= wanted {
            input.peek(wanted)?;
        } else {
            break Next::Fill(wanted);
        }
    };
    let wakers = std::mem::take(&mut store.wakers);
    drop(store);
    // Outside of the lock: who is woken wants it next.
    wakers.into_iter().for_each(Waker::wake);
    session.client.last_seen.store(clock(), Ordering::Relaxed);
    reply.stage()?;
    Ok(next)
}
