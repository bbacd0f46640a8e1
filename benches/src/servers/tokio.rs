//! tokio: a task per connection, `read` and `write_all`, as in its echo example.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Builder;

use crate::address::Address;
use crate::servers::{Echo, Options};
use crate::sys;

/// One thread.
pub fn serve_current_thread(options: &Options) -> io::Result<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(serve(options.clone()))
}

/// The default runtime of `#[tokio::main]`: a worker for each core that the process may use. The
/// accept loop is a task of its own, so that it runs on a worker too.
pub fn serve_multi_thread(options: &Options) -> io::Result<()> {
    let options = options.clone();
    Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async { tokio::spawn(serve(options)).await.map_err(io::Error::other)? })
}

async fn serve(options: Options) -> io::Result<()> {
    let how = options.echo();
    match &options.listen {
        Address::Tcp(addr) => {
            let listener = TcpListener::bind(addr).await?;
            sys::set_nodelay(&listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(echo(stream, how));
            }
        }
        Address::Unix(path) => {
            let listener = UnixListener::bind(path)?;
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(echo(stream, how));
            }
        }
    }
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, how: Echo) -> io::Result<()> {
    let mut buffer = vec![0; how.buffer_bytes];
    let mut filled = 0;
    loop {
        let received = stream.read(&mut buffer[filled..]).await?;
        if received == 0 {
            return Ok(());
        }
        filled += received;
        let answered = how.answerable(&buffer[..filled]);
        stream.write_all(&buffer[..answered]).await?;
        buffer.copy_within(answered..filled, 0);
        filled -= answered;
    }
}
