//! The floors: relays written by hand, on epoll, for one thread. One copies through a buffer that all connections share, the other has
//! the kernel move pages through a pipe (`splice(2)`) that all share. A direction has a buffer, or a pipe, of its own only while its
//! target takes no more.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP};

use super::Options;
use crate::address::Address;
use crate::sys::{self, Epoll, Events};

const EVENTS_MAX: usize = 128;
/// What is moved at once.
const BYTES: usize = 256 << 10;

/// Bytes on their way from one socket to another.
trait Way {
    fn new() -> io::Result<Self>
    where
        Self: Sized;
    /// Takes what the source has; 0 at its end.
    fn take(&mut self, from: BorrowedFd<'_>) -> io::Result<usize>;
    /// Gives what was taken; true if nothing is left.
    fn give(&mut self, to: BorrowedFd<'_>) -> io::Result<bool>;
}

struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Way for Buffer {
    fn new() -> io::Result<Buffer> {
        Ok(Buffer { bytes: vec![0; BYTES], start: 0, end: 0 })
    }

    #[inline]
    fn take(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        let received = sys::recv(from, &mut self.bytes)?;
        (self.start, self.end) = (0, received);
        Ok(received)
    }

    #[inline]
    fn give(&mut self, to: BorrowedFd<'_>) -> io::Result<bool> {
        while self.start < self.end {
            match sys::send(to, &self.bytes[self.start..self.end]) {
                Ok(sent) => self.start += sent,
                Err(error) if sys::would_block(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

/// Moves at most so many bytes.
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let nowhere = std::ptr::null_mut();
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: no offsets are pointed to.
    let moved = unsafe { libc::splice(from, nowhere, to, nowhere, bytes, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

impl Way for Pipe {
    fn new() -> io::Result<Pipe> {
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two descriptors, which nobody else owns.
        let (read, write) = unsafe {
            sys::check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK))?;
            sys::check(libc::fcntl(ends[1], libc::F_SETPIPE_SZ, BYTES as libc::c_int))?;
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        Ok(Pipe { read, write, held: 0 })
    }

    #[inline]
    fn take(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        self.held = splice(from, self.write.as_fd(), BYTES)?;
        Ok(self.held)
    }

    #[inline]
    fn give(&mut self, to: BorrowedFd<'_>) -> io::Result<bool> {
        while self.held > 0 {
            match splice(self.read.as_fd(), to, self.held) {
                Ok(sent) => self.held -= sent,
                Err(error) if sys::would_block(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

struct Loop<W> {
    epoll: Epoll,
    /// Each socket, and what it is joined to.
    sockets: HashMap<RawFd, (OwnedFd, RawFd)>,
    shared: W,
    /// What a socket did not take of what came for it.
    stalled: HashMap<RawFd, W>,
}

pub fn copy(options: &Options) -> io::Result<()> {
    serve::<Buffer>(options)
}

pub fn spliced(options: &Options) -> io::Result<()> {
    serve::<Pipe>(options)
}

fn serve<W: Way>(options: &Options) -> io::Result<()> {
    let listener = sys::listen(&Address::Tcp(options.listen))?;
    let upstream = Address::Tcp(options.upstream);
    let mut state = Loop {
        epoll: Epoll::new()?,
        sockets: HashMap::new(),
        shared: W::new()?,
        stalled: HashMap::new(),
    };
    state.epoll.add(listener.as_fd(), EPOLLIN, sys::token(listener.as_raw_fd()))?;
    let mut events = Events::with_capacity(EVENTS_MAX);
    loop {
        state.epoll.wait(&mut events, -1)?;
        for (ready, token) in events.iter() {
            let fd = token as RawFd;
            if fd == listener.as_raw_fd() {
                state.accept(listener.as_fd(), &upstream)?;
                continue;
            }
            let Some(&(_, other)) = state.sockets.get(&fd) else { continue };
            if ready & EPOLLOUT as u32 != 0 && state.stalled.contains_key(&fd) {
                state.relay(other, fd);
            }
            if ready & !(EPOLLOUT as u32) != 0 {
                state.relay(fd, other);
            }
        }
    }
}

impl<W: Way> Loop<W> {
    fn accept(&mut self, listener: BorrowedFd<'_>, upstream: &Address) -> io::Result<()> {
        loop {
            let client = match sys::accept(listener) {
                Ok(client) => client,
                Err(error) if sys::would_block(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            // On loopback it is there at once.
            let server = sys::connect(upstream, None)?;
            sys::set_nodelay(&server)?;
            let (here, there) = (client.as_raw_fd(), server.as_raw_fd());
            self.sockets.insert(here, (client, there));
            self.sockets.insert(there, (server, here));
            for fd in [here, there] {
                let watch = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
                self.epoll.add(self.sockets[&fd].0.as_fd(), watch, sys::token(fd))?;
            }
        }
    }

    /// Moves what there is from one to the other; ends both at an end or an error.
    #[inline]
    fn relay(&mut self, from: RawFd, to: RawFd) {
        let (Some((source, _)), Some((target, _))) =
            (self.sockets.get(&from), self.sockets.get(&to))
        else {
            return;
        };
        if !self.stalled.is_empty()
            && let Some(way) = self.stalled.get_mut(&to)
        {
            match way.give(target.as_fd()) {
                Ok(true) => drop(self.stalled.remove(&to)),
                Ok(false) => return,
                Err(_) => return self.end(from, to),
            }
        }
        loop {
            match self.shared.take(source.as_fd()) {
                Ok(0) => return self.end(from, to),
                Ok(_) => {}
                Err(error) if sys::would_block(&error) => return,
                Err(_) => return self.end(from, to),
            }
            match self.shared.give(target.as_fd()) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(_) => return self.end(from, to),
            }
            let Ok(fresh) = W::new() else { return self.end(from, to) };
            self.stalled.insert(to, std::mem::replace(&mut self.shared, fresh));
            return;
        }
    }

    fn end(&mut self, one: RawFd, other: RawFd) {
        for fd in [one, other] {
            self.sockets.remove(&fd);
            self.stalled.remove(&fd);
        }
    }
}
