//! monoio: a task per connection on one thread, with owned buffers, as in its echo example.

use std::io;

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, UnixListener};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::address::Address;
use crate::servers::{Echo, Options};
use crate::sys;

/// On io_uring.
pub fn serve_uring(options: &Options) -> io::Result<()> {
    RuntimeBuilder::<IoUringDriver>::new().build()?.block_on(serve(options))
}

/// On epoll.
pub fn serve_epoll(options: &Options) -> io::Result<()> {
    RuntimeBuilder::<LegacyDriver>::new().build()?.block_on(serve(options))
}

async fn serve(options: &Options) -> io::Result<()> {
    let how = options.echo();
    match &options.listen {
        Address::Tcp(addr) => {
            let listener = TcpListener::bind(addr)?;
            sys::set_nodelay(&listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                monoio::spawn(echo(stream, how));
            }
        }
        Address::Unix(path) => {
            // Its own `bind` asks for SO_REUSEPORT, which newer kernels refuse on Unix sockets, and
            // leaves the socket blocking, which stops the epoll driver in its first accept.
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            listener.set_nonblocking(monoio::utils::is_legacy())?;
            let listener = UnixListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                monoio::spawn(echo(stream, how));
            }
        }
    }
}

async fn echo(mut stream: impl AsyncReadRent + AsyncWriteRent, how: Echo) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(how.buffer_bytes);
    loop {
        let filled = buffer.len();
        let (result, read) = stream.read(buffer.slice_mut(filled..)).await;
        if result? == 0 {
            return Ok(());
        }
        buffer = read.into_inner();
        let answered = how.answerable(&buffer);
        let (result, written) = stream.write_all(buffer.slice(..answered)).await;
        result?;
        buffer = written.into_inner();
        buffer.drain(..answered);
    }
}
