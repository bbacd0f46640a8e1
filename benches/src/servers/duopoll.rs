//! This project's own servers, one engine each.

use std::io;

use ::duopoll::{Connection, Engine, EventLoop, Listener, Server, Service};

use crate::servers::{Echo, Options};

/// Echoes every byte of every connection, or every message. Returns only on failure. The message size is not passed on:
/// unlike the floors and the peers, this server has to find out for itself what arrives.
pub fn serve(options: &Options, engine: Engine) -> io::Result<()> {
    let listener = Listener::bind(options.listen.to_string().as_str())?;
    let messages = options.framed.then(|| options.echo());
    service(engine, messages).serve_here(listener, |_| std::future::pending())?;
    Ok(())
}

/// Starts an echo server, with one poller.
pub fn start(address: &str, engine: Engine) -> io::Result<Server> {
    service(engine, None).serve(Listener::bind(address)?)
}

fn service(engine: Engine, messages: Option<Echo>) -> Service {
    let builder = EventLoop::builder().engine(engine).pollers(1);
    match messages {
        Some(messages) => builder.on_request(async move |connection: &mut Connection| {
            answer(connection, messages).await
        }),
        None => builder.on_request(echo),
    }
}

/// The whole messages that have arrived.
async fn answer(connection: &mut Connection, messages: Echo) -> io::Result<()> {
    let (reader, writer) = connection.split();
    let buffer = reader.buffer_mut();
    loop {
        let mut whole = messages.answerable(buffer.first_chunk());
        if whole == 0 {
            // One that lies in several blocks, or is not there yet.
            let mut header = [0; 4];
            whole = buffer.peek_to(&mut header) + u32::from_be_bytes(header) as usize;
            if whole < header.len() || whole > buffer.len() {
                break;
            }
        }
        writer.append(&mut buffer.split_to(whole)?);
    }
    writer.flush().await
}

/// Gives back what has arrived.
pub async fn echo(connection: &mut Connection) -> io::Result<()> {
    let (reader, writer) = connection.split();
    writer.append(reader.buffer_mut());
    writer.flush().await
}
