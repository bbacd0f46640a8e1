//! monoio: a task per connection on one thread, with owned buffers, as in its echo example.

use std::io;

use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, UnixListener};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::address::Address;
use crate::servers::Options;
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
    let buffer_bytes = options.read_buffer_bytes();
    match &options.listen {
        Address::Tcp(addr) => {
            let listener = TcpListener::bind(addr)?;
            sys::set_nodelay(&listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                monoio::spawn(echo(stream, buffer_bytes));
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
                monoio::spawn(echo(stream, buffer_bytes));
            }
        }
    }
}

async fn echo(
    mut stream: impl AsyncReadRent + AsyncWriteRent,
    buffer_bytes: usize,
) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(buffer_bytes);
    let mut result;
    loop {
        (result, buffer) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        (result, buffer) = stream.write_all(buffer).await;
        result?;
        buffer.clear();
    }
}
