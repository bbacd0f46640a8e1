//! The floor on epoll: the best single-threaded loop we know how to write by hand.
//!
//! - Edge-triggered: the kernel does not look again at every ready socket on the next wait. The
//!   price is that a connection which stops early must be remembered: on the `unfinished` list when
//!   its share of a turn is used up, in `stalled` when its socket takes no more.
//! - Turns of at most 128 events: the sockets of a turn stay in the cache between the receive and the
//!   send.
//! - Small answers are kept to the end of the turn, packed in one arena, and sent back to back.
//!   Large ones are sent while they are hot.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::{EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP};

use crate::servers::Options;
use crate::sys::{self, Epoll, Events};

const EVENTS_MAX: usize = 128;
/// A receive asks for this much. More than a message, so that a shorter result, which means that the
/// socket is empty, is the rule.
const READ_BYTES: usize = 80 << 10;
/// The same where messages are larger than that.
const READ_BYTES_LARGE: usize = 256 << 10;
/// Answers up to this size wait for the end of the turn.
const KEEP_BYTES_MAX: usize = 8 << 10;
const ARENA_BYTES: usize = EVENTS_MAX * KEEP_BYTES_MAX + READ_BYTES_LARGE;
/// A connection's share of a turn.
const READ_BUDGET_BYTES: usize = 2 * READ_BYTES_LARGE;

const WATCH: libc::c_int = EPOLLIN | EPOLLRDHUP | EPOLLET;

/// An answer that waits for the end of the turn.
struct Kept {
    fd: RawFd,
    start: u32,
    len: u32,
}

struct Loop {
    read_bytes: usize,
    epoll: Epoll,
    connections: HashMap<RawFd, OwnedFd>,
    /// Bytes that a socket did not take. Such a connection is not read from.
    stalled: HashMap<RawFd, Vec<u8>>,
    /// Connections that stopped reading before the socket was empty.
    unfinished: Vec<RawFd>,
    arena: Vec<u8>,
    used: usize,
    kept: Vec<Kept>,
}

/// Serves until an error that is not a connection's own.
pub fn serve(options: &Options) -> io::Result<()> {
    let listener = sys::listen(&options.listen)?;
    let large = options.burst_bytes > READ_BYTES;
    let mut state = Loop {
        read_bytes: if large { READ_BYTES_LARGE } else { READ_BYTES },
        epoll: Epoll::new()?,
        connections: HashMap::new(),
        stalled: HashMap::new(),
        unfinished: Vec::new(),
        arena: vec![0; ARENA_BYTES],
        used: 0,
        kept: Vec::with_capacity(EVENTS_MAX),
    };
    state.epoll.add(listener.as_fd(), EPOLLIN, sys::token(listener.as_raw_fd()))?;
    let mut events = Events::with_capacity(EVENTS_MAX);
    loop {
        let timeout_ms = if state.unfinished.is_empty() { -1 } else { 0 };
        state.epoll.wait(&mut events, timeout_ms)?;
        let unfinished = std::mem::take(&mut state.unfinished);
        for (ready, token) in events.iter() {
            let fd = token as RawFd;
            if fd == listener.as_raw_fd() {
                state.accept_all(listener.as_fd())?;
                continue;
            }
            if ready & EPOLLOUT as u32 != 0 && state.stalled.contains_key(&fd) {
                state.flush_stalled(fd);
                continue;
            }
            let hung_up = ready & !(EPOLLIN | EPOLLOUT) as u32 != 0;
            state.serve_readable(fd, hung_up);
        }
        for fd in unfinished {
            // Its own event may have closed it.
            if state.connections.contains_key(&fd) {
                state.serve_readable(fd, true);
            }
        }
        state.send_kept();
    }
}

impl Loop {
    fn accept_all(&mut self, listener: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            match sys::accept(listener) {
                Ok(fd) => {
                    self.epoll.add(fd.as_fd(), WATCH, sys::token(fd.as_raw_fd()))?;
                    self.connections.insert(fd.as_raw_fd(), fd);
                }
                Err(error) if sys::would_block(&error) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives until the socket is empty, the share is used up, or the socket takes no answer.
    ///
    /// `until_end` keeps receiving after a short read: an end of stream that was already there
    /// raises no second edge.
    #[inline]
    fn serve_readable(&mut self, number: RawFd, until_end: bool) {
        if !self.stalled.is_empty() && self.stalled.contains_key(&number) {
            return;
        }
        // SAFETY: `connections` keeps the descriptor open until `close`, which only its own event
        // calls, once a turn; the unfinished list is checked against `connections`.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let mut budget = READ_BUDGET_BYTES;
        loop {
            if self.arena.len() - self.used < self.read_bytes {
                self.send_kept();
            }
            let start = self.used;
            let received = match sys::recv(fd, &mut self.arena[start..start + self.read_bytes]) {
                Ok(0) => return self.close(number),
                Ok(received) => received,
                Err(error) if sys::would_block(&error) => return,
                Err(_) => return self.close(number),
            };
            if received <= KEEP_BYTES_MAX {
                self.kept.push(Kept { fd: number, start: start as u32, len: received as u32 });
                self.used = (start + received).next_multiple_of(64);
            } else {
                // An earlier, kept answer of the same connection goes first.
                if budget < READ_BUDGET_BYTES {
                    self.send_kept();
                }
                if !self.send_now(number, start, received) {
                    return;
                }
            }
            if received < self.read_bytes && !until_end {
                return;
            }
            budget = budget.saturating_sub(received);
            if budget == 0 {
                self.unfinished.push(number);
                return;
            }
        }
    }

    /// Sends the kept answers of the turn.
    #[inline]
    fn send_kept(&mut self) {
        for i in 0..self.kept.len() {
            let Kept { fd, start, len } = self.kept[i];
            self.send_now(fd, start as usize, len as usize);
        }
        self.kept.clear();
        self.used = 0;
    }

    /// Sends a part of the arena; false when the socket did not take all of it, or failed.
    #[inline]
    fn send_now(&mut self, number: RawFd, start: usize, len: usize) -> bool {
        if !self.stalled.is_empty()
            && let Some(bytes) = self.stalled.get_mut(&number)
        {
            bytes.extend_from_slice(&self.arena[start..start + len]);
            return false;
        }
        // SAFETY: as in `serve_readable`; `close` first sends what is kept.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let sent = match sys::send(fd, &self.arena[start..start + len]) {
            Ok(sent) => sent,
            Err(error) if sys::would_block(&error) => 0,
            // The receive side will see the same failure, and closes.
            Err(_) => return false,
        };
        if sent < len {
            self.stalled.insert(number, self.arena[start + sent..start + len].to_vec());
            // The change of the mask also reports a socket that became writable in between.
            let _ = self.epoll.modify(fd, WATCH | EPOLLOUT, sys::token(number));
        }
        sent == len
    }

    /// Sends what a socket did not take earlier.
    fn flush_stalled(&mut self, number: RawFd) {
        let Some(bytes) = self.stalled.get_mut(&number) else {
            return;
        };
        // SAFETY: a stalled connection is open: `close` removes it from both maps.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        while !bytes.is_empty() {
            match sys::send(fd, bytes) {
                Ok(sent) => drop(bytes.drain(..sent)),
                Err(error) if sys::would_block(&error) => return,
                Err(_) => return self.close(number),
            }
        }
        self.stalled.remove(&number);
        // What arrived while nobody read raised its edge already.
        self.serve_readable(number, true);
    }

    fn close(&mut self, number: RawFd) {
        self.send_kept();
        self.stalled.remove(&number);
        self.connections.remove(&number);
    }
}
