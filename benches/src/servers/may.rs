//! may: a stackful coroutine per connection that reads and writes as if it blocked, as in its echo
//! example. One worker, as there is one core.

use std::io::{self, Read, Write};

use may::go;
use may::net::TcpListener;
use may::os::unix::net::UnixListener;

use crate::address::Address;
use crate::servers::{Echo, Options};
use crate::sys;

/// Serves until the listener fails.
pub fn serve(options: &Options) -> io::Result<()> {
    may::config().set_workers(1);
    let options = options.clone();
    go!(move || accept(&options))
        .join()
        .map_err(|_| io::Error::other("the accept coroutine panicked"))?
}

fn accept(options: &Options) -> io::Result<()> {
    let how = options.echo();
    match &options.listen {
        Address::Tcp(addr) => {
            let listener = TcpListener::bind(addr)?;
            sys::set_nodelay(&listener)?;
            loop {
                let (stream, _) = listener.accept()?;
                go!(move || echo(stream, how));
            }
        }
        Address::Unix(path) => {
            let listener = UnixListener::bind(path)?;
            loop {
                let (stream, _) = listener.accept()?;
                go!(move || echo(stream, how));
            }
        }
    }
}

fn echo(mut stream: impl Read + Write, how: Echo) -> io::Result<()> {
    let mut buffer = vec![0; how.buffer_bytes];
    let mut filled = 0;
    loop {
        let received = stream.read(&mut buffer[filled..])?;
        if received == 0 {
            return Ok(());
        }
        filled += received;
        let answered = how.answerable(&buffer[..filled]);
        stream.write_all(&buffer[..answered])?;
        buffer.copy_within(answered..filled, 0);
        filled -= answered;
    }
}
