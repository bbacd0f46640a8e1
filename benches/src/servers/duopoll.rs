//! This project's own servers, one engine each.

use std::io;

use ::duopoll::{Connection, Engine, EventLoop, Listener, Server};

use crate::servers::Options;

/// Echoes every byte of every connection, or every message. Returns only on failure.
pub fn serve(options: &Options, engine: Engine) -> io::Result<()> {
    let _server = start(&options.listen.to_string(), engine, options.framed)?;
    loop {
        std::thread::park();
    }
}

/// Starts the server, with one poller. The message size is not passed on: unlike the floors and the peers, this server
/// has to find out for itself what arrives.
pub fn start(address: &str, engine: Engine, framed: bool) -> io::Result<Server> {
    let listener = Listener::bind(address)?;
    let builder = EventLoop::builder().engine(engine).pollers(1);
    let service = if framed { builder.on_request(answer) } else { builder.on_request(echo) };
    service.serve(listener)
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
