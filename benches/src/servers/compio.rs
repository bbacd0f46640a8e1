//! compio: a task per connection on one thread, with owned buffers.

use std::io;

use compio::BufResult;
use compio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use compio::net::{TcpListener, UnixListener};
use compio::runtime::Runtime;

use crate::address::Address;
use crate::servers::Options;
use crate::sys;

/// Serves until the listener fails.
pub fn serve(options: &Options) -> io::Result<()> {
    Runtime::new()?.block_on(accept(options))
}

async fn accept(options: &Options) -> io::Result<()> {
    let buffer_bytes = options.read_buffer_bytes();
    match &options.listen {
        Address::Tcp(addr) => {
            let listener = TcpListener::bind(addr).await?;
            sys::set_nodelay(&listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                compio::runtime::spawn(echo(stream, buffer_bytes)).detach();
            }
        }
        Address::Unix(path) => {
            let listener = UnixListener::bind(path).await?;
            loop {
                let (stream, _) = listener.accept().await?;
                compio::runtime::spawn(echo(stream, buffer_bytes)).detach();
            }
        }
    }
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(buffer_bytes);
    loop {
        let BufResult(result, read) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        let BufResult(result, mut written) = stream.write_all(read).await;
        result?;
        written.clear();
        buffer = written;
    }
}
