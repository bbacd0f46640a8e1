//! A server that speaks the Redis protocol: the usual commands on strings, lists, sets, hashes and sorted sets.
//!
//! ```text
//! cargo run --release --example redis
//! redis-cli -p 6380 set greeting hello
//! redis-benchmark -p 6380 -q
//! ```
//!
//! The life of a request: [`resp`] finds its arguments where they lie in the connection's input, [`commands`] looks
//! it up and runs it on the [`store`], [`reply`] stages the answer. All requests that have arrived together are
//! answered with one flush. Nothing is persisted, and there is one database.

#[path = "redis/commands.rs"]
mod commands;
#[path = "common/flags.rs"]
mod flags;
#[path = "redis/numbers.rs"]
mod numbers;
#[path = "redis/reply.rs"]
mod reply;
#[path = "redis/resp.rs"]
mod resp;
#[path = "redis/store.rs"]
mod store;
#[path = "redis/values.rs"]
mod values;

use std::cell::Cell;
use std::io;
use std::process::ExitCode;

use duopoll::{Connection, LinkBuffer, Writer};

use reply::Reply;
use resp::{BULK_BYTES_MAX, Parser, Step};
use store::SharedStore;

/// Replies staged before they are flushed although more requests wait, in bytes. With the watermark of the
/// connection this bounds what a client costs that sends and never reads.
const STAGED_BYTES_MAX: usize = 256 << 10;
/// A request that is longer than this and not complete moves out of the input piece by piece, so that the input
/// never has to be copied together as a whole.
const IN_PLACE_BYTES_MAX: usize = 256 << 10;
/// Scratch memory that is kept for the next connection, in bytes and in arguments.
const SCRATCH_MAX: usize = 64 << 10;

const PROGRAM: flags::Program = flags::Program {
    about: "A server that speaks the Redis protocol (RESP2).",
    listen: "127.0.0.1:6380",
    tls: false,
};

fn main() -> ExitCode {
    flags::main(&PROGRAM, |flags| {
        let store = SharedStore::start()?;
        let (connected, disconnected) = (store.clone(), store.clone());
        let service = flags
            .builder()
            // A value is read as a whole.
            .message_bytes_max(BULK_BYTES_MAX + IN_PLACE_BYTES_MAX)
            .on_connect(async move |_: &mut Connection| {
                connected.lock().stats.connect();
                Ok(())
            })
            .on_disconnect(async move |_: &mut Connection| {
                disconnected.lock().stats.disconnect();
            })
            .on_request(async move |connection: &mut Connection| serve(&store, connection).await);
        service.serve(flags.listener()?)
    })
}

/// What a connection works with. It outlives every wait, so a wait that is dropped loses nothing.
#[derive(Default)]
struct Session {
    parser: Parser,
    /// Replies, before they are staged.
    out: Vec<u8>,
}

thread_local! {
    /// Sessions last as long as a call of the handler. The memory of the last one serves the next.
    static SCRATCH: Cell<Session> = Cell::default();
}

/// Answers what has arrived, and the rest of a request that has arrived in part.
async fn serve(store: &SharedStore, connection: &mut Connection) -> io::Result<()> {
    let mut session = SCRATCH.take();
    let result = answer(&mut session, store, connection).await;
    if session.out.capacity() <= SCRATCH_MAX && session.parser.capacity() <= SCRATCH_MAX {
        session.parser.reset();
        session.out.clear();
        SCRATCH.set(session);
    }
    result
}

async fn answer(
    session: &mut Session,
    store: &SharedStore,
    connection: &mut Connection,
) -> io::Result<()> {
    let (reader, writer) = connection.split();
    loop {
        match run_arrived(session, store, reader.buffer_mut(), writer)? {
            // The event loop flushes.
            Next::Return => return Ok(()),
            Next::Flush => writer.flush().await?,
            Next::Fill(bytes) => {
                writer.flush().await?;
                match reader.fill(bytes).await {
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
    session: &mut Session,
    store: &SharedStore,
    input: &mut LinkBuffer,
    writer: &mut Writer,
) -> io::Result<Next> {
    let Session { parser, out } = session;
    let mut reply = Reply::new(out, writer);
    let mut store = store.lock();
    store.tick();
    let next = loop {
        let chunk = input.first_chunk();
        let mut done = 0;
        let step = loop {
            let rest = &chunk[done..];
            match parser.parse(rest) {
                Ok(Step::Request) => {
                    commands::run(&mut store, &mut reply, parser.args(rest));
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
    drop(store);
    reply.stage()?;
    Ok(next)
}
