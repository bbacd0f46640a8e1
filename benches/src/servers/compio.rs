//! compio: a task per connection on one thread, with owned buffers.

use std::io;

use compio::BufResult;
use compio::buf::{IntoInner, IoBuf};
use compio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use compio::net::{TcpListener, UnixListener};
use compio::runtime::Runtime;

use crate::address::Address;
use crate::servers::{Echo, Options};
use crate::sys;

/// Serves until the listener fails.
pub fn serve(options: &Options) -> io::Result<()> {
    Runtime::new()?.block_on(accept(options))
}

async fn accept(options: &Options) -> io::Result<()> {
    let how = options.echo();
    match &options.listen {
        Address::Tcp(addr) => {
            let listener = TcpListener::bind(addr).await?;
            sys::set_nodelay(&listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                compio::runtime::spawn(echo(stream, how)).detach();
            }
        }
        Address::Unix(path) => {
            let listener = UnixListener::bind(path).await?;
            loop {
                let (stream, _) = listener.accept().await?;
                compio::runtime::spawn(echo(stream, how)).detach();
            }
        }
    }
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite, how: Echo) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(how.buffer_bytes);
    loop {
        let filled = buffer.len();
        let BufResult(result, read) = stream.read(buffer.slice(filled..)).await;
        if result? == 0 {
            return Ok(());
        }
        buffer = read.into_inner();
        let answered = how.answerable(&buffer);
        let BufResult(result, written) = stream.write_all(buffer.slice(..answered)).await;
        result?;
        buffer = written.into_inner();
        buffer.drain(..answered);
    }
}
