//! Load on connections that stay open: closed loop at any depth, and open loop at a fixed rate.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use libc::{EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP};

use super::slow::Slow;
use super::{Mode, Payload, Spec, Stream, Window};
use crate::sys::{self, Epoll, Events};

const EVENTS_MAX: usize = 1024;
const BUFFER_BYTES: usize = 256 << 10;
const WATCH: libc::c_int = EPOLLIN | EPOLLRDHUP | EPOLLET;

struct Connection {
    stream: Stream,
    /// Bytes queued, sent and received since the greeting; a position in the stream of messages.
    queued: u64,
    sent: u64,
    received: u64,
    /// The end of the message whose answer is coming in.
    answer_ends: u64,
    /// Since when the outstanding requests are under way, oldest first.
    since: VecDeque<u64>,
    /// Open loop: when the requests that wait for their turn were due.
    overdue: VecDeque<u64>,
    /// Whether the socket is watched for room to send. It is only after it was once full: a Unix
    /// socket would otherwise report every byte that the server takes.
    watches_room: bool,
}

struct Steady<'a> {
    epoll: Epoll,
    connections: Vec<Connection>,
    slow: Slow,
    payload: &'a Payload,
    verify: bool,
    buffer: Vec<u8>,
}

/// Runs the load, and returns how many bytes the slow senders sent and got back.
pub(super) fn run(
    spec: &Spec,
    sockets: Vec<Stream>,
    slow: Vec<Stream>,
    payload: &Payload,
    window: &mut Window,
) -> io::Result<u64> {
    let epoll = Epoll::new()?;
    let mut connections = Vec::with_capacity(sockets.len());
    for (index, stream) in sockets.into_iter().enumerate() {
        epoll.add(stream.as_fd(), WATCH, index as u64)?;
        connections.push(Connection {
            stream,
            queued: 0,
            sent: 0,
            received: 0,
            answer_ends: payload.message as u64,
            since: VecDeque::new(),
            overdue: VecDeque::new(),
            watches_room: false,
        });
    }
    let slow = Slow::new(&epoll, slow, connections.len() as u64)?;
    let buffer = vec![0; BUFFER_BYTES];
    let mut steady = Steady { epoll, connections, slow, payload, verify: spec.verify, buffer };
    match spec.mode {
        Mode::Open { rate } => steady.open_loop(rate, window)?,
        Mode::Closed { depth } => steady.closed_loop(depth, window)?,
        Mode::Churn => unreachable!("churn has no lasting connections"),
    }
    steady.slow.finish()
}

impl Steady<'_> {
    fn closed_loop(&mut self, depth: usize, window: &mut Window) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        window.start(sys::now_ns());
        for index in 0..self.connections.len() {
            let now = sys::now_ns();
            (0..depth).for_each(|_| self.queue(index, now));
            self.send(index)?;
        }
        let mut now = sys::now_ns();
        self.slow.start(now);
        while window.tick(now)? {
            self.slow.send_due(now)?;
            if self.epoll.wait(&mut events, 1000)? == 0 {
                now = sys::now_ns();
                continue;
            }
            for (ready, token) in events.iter() {
                if self.slow.receive(token)? {
                    continue;
                }
                let index = token as usize;
                let answers = self.receive(index, window)?;
                if answers > 0 {
                    now = sys::now_ns();
                    (0..answers).for_each(|_| self.queue(index, now));
                }
                if answers > 0 || ready & EPOLLOUT as u32 != 0 {
                    self.send(index)?;
                }
            }
        }
        Ok(())
    }

    /// Spins: the client has its core to itself, and a sleep would be late for the next request.
    fn open_loop(&mut self, rate: f64, window: &mut Window) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let interval_ns = 1e9 / rate;
        let start = sys::now_ns();
        window.start(start);
        self.slow.start(start);
        let mut issued: u64 = 0;
        let mut now = start;
        while window.tick(now)? {
            self.slow.send_due(now)?;
            loop {
                let due = start + (issued as f64 * interval_ns) as u64;
                if due > now {
                    break;
                }
                let index = (issued % self.connections.len() as u64) as usize;
                issued += 1;
                let connection = &mut self.connections[index];
                if connection.since.is_empty() {
                    self.queue(index, due);
                    self.send(index)?;
                } else {
                    connection.overdue.push_back(due);
                }
            }
            self.epoll.wait(&mut events, 0)?;
            for (ready, token) in events.iter() {
                if self.slow.receive(token)? {
                    continue;
                }
                let index = token as usize;
                let answers = self.receive(index, window)?;
                let next =
                    if answers > 0 { self.connections[index].overdue.pop_front() } else { None };
                if let Some(due) = next {
                    self.queue(index, due);
                }
                if next.is_some() || ready & EPOLLOUT as u32 != 0 {
                    self.send(index)?;
                }
            }
            now = sys::now_ns();
        }
        Ok(())
    }

    #[inline]
    fn queue(&mut self, index: usize, since_ns: u64) {
        let connection = &mut self.connections[index];
        connection.queued += self.payload.message as u64;
        connection.since.push_back(since_ns);
    }

    #[inline]
    fn send(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        while connection.sent < connection.queued || connection.stream.holds_back() {
            let wanted = (connection.queued - connection.sent) as usize;
            let bytes = self.payload.at(connection.sent, wanted);
            match connection.stream.send(bytes) {
                Ok(sent) => connection.sent += sent as u64,
                Err(error) if sys::would_block(&error) => {
                    if !connection.watches_room {
                        connection.watches_room = true;
                        let fd = connection.stream.as_fd();
                        self.epoll.modify(fd, WATCH | EPOLLOUT, index as u64)?;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives what is there, and returns the number of answers that it completed.
    #[inline]
    fn receive(&mut self, index: usize, window: &mut Window) -> io::Result<usize> {
        let connection = &mut self.connections[index];
        let mut answers = 0;
        loop {
            let received = match connection.stream.recv(&mut self.buffer) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the server closed a connection",
                    ));
                }
                Ok(received) => received,
                Err(error) if sys::would_block(&error) => break,
                Err(error) => return Err(error),
            };
            let bytes = &self.buffer[..received];
            if self.verify && !self.payload.matches(connection.received, bytes) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs"));
            }
            connection.received += received as u64;
            if connection.received > connection.sent {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than sent"));
            }
            if connection.received >= connection.answer_ends {
                let now = sys::now_ns();
                while connection.received >= connection.answer_ends {
                    connection.answer_ends += self.payload.message as u64;
                    if let Some(since) = connection.since.pop_front() {
                        window.answered(now, since);
                    }
                    answers += 1;
                }
            }
            if received < self.buffer.len() {
                break;
            }
        }
        Ok(answers)
    }
}
