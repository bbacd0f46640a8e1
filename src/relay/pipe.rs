//! Pipes, through which the kernel moves pages from one socket to another: `splice(2)`.

use std::cell::RefCell;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

use duopoll_core::syscalls::uninterrupted;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::LinkBuffer;

/// What a pipe holds, if the kernel lets it have so much: unprivileged users have a bound for all of their pipes.
pub(super) const PIPE_BYTES: usize = 256 << 10;
/// Empty pipes that a thread keeps.
const SPARE_MAX: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and how much is in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty one.
    pub(super) fn take() -> io::Result<Pipe> {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        spare.map_or_else(Pipe::new, Ok)
    }

    fn new() -> io::Result<Pipe> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // It works with less.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Pipe { read, write, held: 0 })
    }

    /// Gives it back, if it is empty.
    pub(super) fn put(self) {
        if self.held == 0 {
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < SPARE_MAX {
                    spare.push(self);
                }
            });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves what the socket has into the pipe, which is empty, and not more than so many bytes; 0 at its end.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        self.held = moved(socket, self.write.as_fd(), most.min(PIPE_BYTES))?;
        Ok(self.held)
    }

    /// Moves what the socket takes out of it.
    pub(super) fn drain(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let drained = moved(self.read.as_fd(), socket, self.held)?;
        self.held -= drained;
        Ok(drained)
    }

    /// Reads what is in it. Into memory that no budget counts, as the pipe's was none: it is not more for that, and a budget that is used
    /// up must not cost a connection that only waits.
    pub(super) fn unload(&mut self, to: &mut LinkBuffer) -> io::Result<()> {
        while self.held > 0 {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(self.held).map_err(|_| io::ErrorKind::OutOfMemory)?;
            bytes.resize(self.held, 0);
            let read = uninterrupted(|| Ok(rustix::io::read(&self.read, &mut bytes)?))?;
            bytes.truncate(read);
            to.push(bytes);
            self.held -= read;
        }
        to.flush();
        Ok(())
    }
}

/// Whether a peer that has gone may end the process, by the signal that splice(2) raises then. Rust programs ignore it, unless they
/// were told otherwise.
pub(super) fn sigpipe_ends_the_process() -> bool {
    // SAFETY: it only writes to what it is given, which may be all zero.
    let action = unsafe {
        let mut action = mem::zeroed::<libc::sigaction>();
        libc::sigaction(libc::SIGPIPE, ptr::null(), &raw mut action);
        action
    };
    action.sa_sigaction == libc::SIG_DFL
}

fn moved(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    uninterrupted(|| Ok(splice(from, None, to, None, bytes, flags)?))
}
