//! The yardstick: the epoll loop that a textbook shows.
//!
//! Level-triggered, up to 1,024 events a turn; each readable connection is received from once and
//! answered at once. A connection that cannot take its answer is watched for writability only, so
//! an event for reading means that nothing is pending and the hot path looks at no state of the
//! connection at all.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::{EPOLLIN, EPOLLOUT};

use crate::servers::Options;
use crate::sys::{self, Epoll, Events};

const EVENTS_MAX: usize = 1024;
const BUFFER_BYTES: usize = 64 << 10;

/// Serves until an error that is not a connection's own.
pub fn serve(options: &Options) -> io::Result<()> {
    let listener = sys::listen(&options.listen)?;
    let epoll = Epoll::new()?;
    epoll.add(listener.as_fd(), EPOLLIN, sys::token(listener.as_raw_fd()))?;
    let mut connections: HashMap<RawFd, OwnedFd> = HashMap::new();
    let mut pending: HashMap<RawFd, Vec<u8>> = HashMap::new();
    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut buffer = vec![0; BUFFER_BYTES];

    loop {
        epoll.wait(&mut events, -1)?;
        for (ready, token) in events.iter() {
            let number = token as RawFd;
            if number == listener.as_raw_fd() {
                accept_all(&epoll, listener.as_fd(), &mut connections)?;
                continue;
            }
            // SAFETY: `connections` keeps the descriptor open until its own event closes it, and a
            // turn has one event a descriptor.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let alive = if ready & EPOLLOUT as u32 != 0 {
                flush(&epoll, fd, &mut pending)
            } else {
                echo(&epoll, fd, &mut buffer, &mut pending)
            };
            if alive.is_err() {
                pending.remove(&number);
                connections.remove(&number);
            }
        }
    }
}

fn accept_all(
    epoll: &Epoll,
    listener: BorrowedFd<'_>,
    connections: &mut HashMap<RawFd, OwnedFd>,
) -> io::Result<()> {
    loop {
        match sys::accept(listener) {
            Ok(fd) => {
                epoll.add(fd.as_fd(), EPOLLIN, sys::token(fd.as_raw_fd()))?;
                connections.insert(fd.as_raw_fd(), fd);
            }
            Err(error) if sys::would_block(&error) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// One receive, one send. An error ends the connection.
#[inline]
fn echo(
    epoll: &Epoll,
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    pending: &mut HashMap<RawFd, Vec<u8>>,
) -> io::Result<()> {
    let received = match sys::recv(fd, buffer) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(received) => received,
        Err(error) if sys::would_block(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let sent = match sys::send(fd, &buffer[..received]) {
        Ok(sent) => sent,
        Err(error) if sys::would_block(&error) => 0,
        Err(error) => return Err(error),
    };
    if sent < received {
        pending.insert(fd.as_raw_fd(), buffer[sent..received].to_vec());
        epoll.modify(fd, EPOLLOUT, sys::token(fd.as_raw_fd()))?;
    }
    Ok(())
}

/// Sends what is pending, and goes back to reading when all of it went.
fn flush(
    epoll: &Epoll,
    fd: BorrowedFd<'_>,
    pending: &mut HashMap<RawFd, Vec<u8>>,
) -> io::Result<()> {
    let Some(bytes) = pending.get_mut(&fd.as_raw_fd()) else {
        return Ok(());
    };
    match sys::send(fd, bytes) {
        Ok(sent) => drop(bytes.drain(..sent)),
        Err(error) if sys::would_block(&error) => {}
        Err(error) => return Err(error),
    }
    if bytes.is_empty() {
        pending.remove(&fd.as_raw_fd());
        epoll.modify(fd, EPOLLIN, sys::token(fd.as_raw_fd()))?;
    }
    Ok(())
}
