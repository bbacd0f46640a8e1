//! glommio: one local executor, a task per connection, as in its echo example.

use std::io;

use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use glommio::net::{TcpListener, UnixListener};
use glommio::{LocalExecutorBuilder, Placement};

use crate::address::Address;
use crate::servers::{Echo, Options};

/// Serves until the listener fails. The process is pinned already, so the executor is not.
pub fn serve(options: &Options) -> io::Result<()> {
    let options = options.clone();
    LocalExecutorBuilder::new(Placement::Unbound).make()?.run(accept(options))
}

async fn accept(options: Options) -> io::Result<()> {
    let how = options.echo();
    match &options.listen {
        Address::Tcp(addr) => {
            let listener = TcpListener::bind(addr)?;
            loop {
                let stream = listener.accept().await?;
                stream.set_nodelay(true)?;
                glommio::spawn_local(echo(stream, how)).detach();
            }
        }
        Address::Unix(path) => {
            let listener = UnixListener::bind(path)?;
            loop {
                let stream = listener.accept().await?;
                glommio::spawn_local(echo(stream, how)).detach();
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
