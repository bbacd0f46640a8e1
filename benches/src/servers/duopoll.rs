//! This project's own servers, one engine each.

use std::io;

use ::duopoll::{Connection, Engine, EventLoop, Listener, Server, Service};

use crate::servers::Options;

/// Echoes every byte of every connection, or every message. Returns only on failure. The message size is not passed on:
/// unlike the floors and the peers, this server has to find out for itself what arrives.
pub fn serve(options: &Options, engine: Engine) -> io::Result<()> {
    let listener = Listener::bind(options.listen.to_string().as_str())?;
    service(engine, options.framed).serve_here(listener, |_| std::future::pending())?;
    Ok(())
}

/// Starts an echo server, with one poller.
pub fn start(address: &str, engine: Engine) -> io::Result<Server> {
    service(engine, false).serve(Listener::bind(address)?)
}

fn service(engine: Engine, framed: bool) -> Service {
    let builder = EventLoop::builder().engine(engine).pollers(1);
    if framed { builder.on_request(answer) } else { builder.on_request(echo) }
}

/// One message with a length in front.
async fn answer(connection: &mut Connection) -> io::Result<()> {
    let header = connection.read_u32().await?;
    let body = connection.next(header as usize).await?;
    connection.write(&header.to_be_bytes())?;
    connection.push(body);
    connection.flush().await
}

async fn echo(connection: &mut Connection) -> io::Result<()> {
    let (reader, writer) = connection.split();
    writer.append(reader.buffer());
    writer.flush().await
}
