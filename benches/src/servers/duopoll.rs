//! This project's own servers, one engine each.

use std::io;

use ::duopoll::{Connection, Engine, EventLoop, Listener};

use crate::servers::Options;

/// Echoes every byte of every connection, with one poller. The message size is not passed on: unlike the floors and the
/// peers, this server has to find out for itself what arrives. Returns only on failure.
pub fn serve(options: &Options, engine: Engine) -> io::Result<()> {
    let listener = Listener::bind(&options.listen.to_string())?;
    let _server =
        EventLoop::builder().engine(engine).pollers(1).on_request(echo).serve(listener)?;
    loop {
        std::thread::park();
    }
}

async fn echo(connection: &mut Connection) -> io::Result<()> {
    let (reader, writer) = connection.split();
    writer.append(reader.buffer());
    writer.flush().await
}
