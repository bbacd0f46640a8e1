//! The load generator of datagrams: one thread, one epoll instance, a connected socket for each peer.
//!
//! A peer has some requests under way, each in a slot that its sequence number names. A request is what the server is asked at once: a
//! datagram, or a group of them. What is not answered for a while counts as lost, and is asked again under another number.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use libc::{EPOLLET, EPOLLIN};
use serde::{Deserialize, Serialize};

use super::mmsg::{self, BATCH_MAX, Piece, Received, Sends};
use super::service::{self, GREETING, HEADER_BYTES};
use super::shape::Ask;
use crate::load::{Outcome, Window};
use crate::process;
use crate::sys::{self, Epoll, Events};

const EVENTS_MAX: usize = 128;
/// Between two looks for what was lost.
const LOOK_MS: i32 = 50;
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

/// One run of the load generator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The server's address.
    pub target: SocketAddrV4,
    /// The server's process, for its CPU clock and memory.
    pub server_pid: u32,
    /// What is asked.
    pub ask: Ask,
    /// Bytes of a datagram.
    pub bytes: usize,
    /// Sockets that ask.
    pub peers: usize,
    /// Echoes a second over all peers, in an open loop; none is a closed loop.
    pub rate: Option<f64>,
    /// Time before the measured window, in milliseconds.
    pub warm_ms: u64,
    /// The measured window, in milliseconds.
    pub measure_ms: u64,
    /// How long an answer may take, in milliseconds.
    pub lost_after_ms: u64,
    /// Compare every received byte. Costs the client, for tests.
    pub verify: bool,
}

/// A request under way.
#[derive(Clone, Default)]
struct Slot {
    sequence: u64,
    /// When it was due.
    since_ns: u64,
    sent_ns: u64,
    /// Answers that are missing; 0 where nothing is under way.
    missing: usize,
    /// Datagrams of the whole run when it was sent.
    sent_in_all: u64,
}

struct Peer {
    socket: UdpSocket,
    slots: Vec<Slot>,
    /// Open loop: slots without a request, and when the requests that wait for one were due.
    free: Vec<usize>,
    overdue: VecDeque<u64>,
}

struct Load<'a> {
    spec: &'a Spec,
    peers: Vec<Peer>,
    /// The bytes of a datagram, but for the header.
    filler: Vec<u8>,
    /// Requests that are about to be sent.
    requests: Vec<Vec<u8>>,
    next_request: usize,
    sends: Sends<false>,
    received: Received,
    sent: u64,
    /// What the server had counted before the first request.
    counted_before: u64,
    lost: u64,
    /// Whether nothing more is asked.
    is_over: bool,
}

/// Runs a specification to its end.
pub fn run(spec: &Spec) -> io::Result<Outcome> {
    let mut outcome =
        Outcome { rss_start_kib: process::rss_kib(spec.server_pid)?, ..Outcome::default() };
    let mut load = Load::new(spec)?;
    outcome.rss_idle_kib = process::rss_kib(spec.server_pid)?;
    outcome.requests_in_all = spec.peers as u64;
    let mut window = Window::new(spec.server_pid, spec.warm_ms, spec.measure_ms)?;
    load.run(&mut window)?;
    window.fill(&mut outcome);
    outcome.lost = Some(load.lost);
    Ok(outcome)
}

impl<'a> Load<'a> {
    fn new(spec: &'a Spec) -> io::Result<Self> {
        let filler: Vec<u8> = (0..spec.bytes).map(|i| (i as u32 * 31 + 7) as u8).collect();
        let request = match spec.ask {
            Ask::Bulk => filler.repeat(spec.ask.out()),
            Ask::Send => vec![0; HEADER_BYTES],
            Ask::Echo | Ask::Receive => filler.clone(),
        };
        let mut load = Load {
            spec,
            peers: Vec::with_capacity(spec.peers),
            filler,
            requests: vec![request; BATCH_MAX],
            next_request: 0,
            sends: Sends::new(),
            received: Received::new(spec.ask == Ask::Bulk),
            sent: 0,
            counted_before: 0,
            lost: 0,
            is_over: false,
        };
        for _ in 0..spec.peers {
            let socket = super::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(spec.target)?;
            load.greet(&socket)?;
            if spec.ask == Ask::Bulk {
                mmsg::receive_trains(socket.as_fd())?;
                let segment = spec.bytes as libc::c_int;
                sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, segment)?;
            }
            let depth = depth(spec, &socket)?;
            load.peers.push(Peer {
                socket,
                slots: (0..depth)
                    .map(|index| Slot { sequence: index as u64, ..Slot::default() })
                    .collect(),
                free: (0..depth).collect(),
                overdue: VecDeque::new(),
            });
        }
        Ok(load)
    }

    /// Asks for one datagram and waits for it.
    fn greet(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let late = |error: io::Error| io::Error::new(error.kind(), format!("greeting: {error}"));
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(GREETING_TIMEOUT))?;
        socket.send(&service::header(GREETING, 1)).map_err(late)?;
        let mut answer = [0; HEADER_BYTES];
        socket.recv(&mut answer).map_err(late)?;
        let (_, counted) = service::parse(&answer).ok_or_else(wrong)?;
        self.counted_before = counted;
        socket.set_nonblocking(true)
    }

    fn run(&mut self, window: &mut Window) -> io::Result<()> {
        let epoll = Epoll::new()?;
        for (index, peer) in self.peers.iter().enumerate() {
            epoll.add(peer.socket.as_fd(), EPOLLIN | EPOLLET, index as u64)?;
        }
        let mut events = Events::with_capacity(EVENTS_MAX);
        let start = sys::now_ns();
        window.start(start);
        if self.spec.rate.is_none() {
            for peer in 0..self.peers.len() {
                for slot in 0..self.peers[peer].slots.len() {
                    self.ask(peer, slot, start)?;
                }
                self.flush(peer)?;
            }
        }
        let mut issued: u64 = 0;
        let mut looked = start;
        let mut now = start;
        while window.tick(now)? {
            let timeout_ms = match self.spec.rate {
                None => LOOK_MS,
                // Spins: the client has its core to itself, and a sleep would be late for the next request.
                Some(rate) => {
                    self.ask_what_is_due(start, now, 1e9 / rate, &mut issued)?;
                    0
                }
            };
            epoll.wait(&mut events, timeout_ms)?;
            for (_, token) in events.iter() {
                self.receive(token as usize, window)?;
            }
            now = sys::now_ns();
            if now - looked > LOOK_MS as u64 * 1_000_000 {
                looked = now;
                self.ask_again(now)?;
            }
        }
        self.is_over = true;
        // What is under way is answered too, so that system calls a datagram are exact.
        let deadline = now + self.lost_after_ns();
        while sys::now_ns() < deadline && self.missing() > 0 {
            epoll.wait(&mut events, LOOK_MS)?;
            for (_, token) in events.iter() {
                self.receive(token as usize, window)?;
            }
        }
        if self.spec.ask != Ask::Receive {
            self.lost += self.missing();
        }
        Ok(())
    }

    fn lost_after_ns(&self) -> u64 {
        self.spec.lost_after_ms * 1_000_000
    }

    /// Answers that are missing.
    fn missing(&self) -> u64 {
        self.peers.iter().flat_map(|peer| &peer.slots).map(|slot| slot.missing as u64).sum()
    }

    fn ask_what_is_due(
        &mut self,
        start: u64,
        now: u64,
        interval_ns: f64,
        issued: &mut u64,
    ) -> io::Result<()> {
        loop {
            let due = start + (*issued as f64 * interval_ns) as u64;
            if due > now {
                return Ok(());
            }
            let index = (*issued % self.peers.len() as u64) as usize;
            *issued += 1;
            let peer = &mut self.peers[index];
            match peer.free.pop() {
                Some(slot) => {
                    self.ask(index, slot, due)?;
                    self.flush(index)?;
                }
                None => peer.overdue.push_back(due),
            }
        }
    }

    /// Adds a request to what goes out to a peer.
    #[inline]
    fn ask(&mut self, peer: usize, slot: usize, since_ns: u64) -> io::Result<()> {
        let ask = self.spec.ask;
        let Peer { socket, slots, .. } = &mut self.peers[peer];
        let depth = slots.len() as u64;
        let slot = &mut slots[slot];
        slot.sequence += depth;
        slot.since_ns = since_ns;
        slot.sent_ns = sys::now_ns();
        slot.missing = ask.back();
        // A request of several datagrams is several pieces, unless the kernel cuts it.
        let pieces = if ask == Ask::Receive { ask.out() } else { 1 };
        for index in 0..pieces {
            let request = &mut self.requests[self.next_request];
            self.next_request = (self.next_request + 1) % BATCH_MAX;
            let argument = match ask {
                Ask::Receive => u64::from(index + 1 == pieces),
                Ask::Send => ask.back() as u64,
                Ask::Echo | Ask::Bulk => !slot.sequence,
            };
            let header = service::header(slot.sequence, argument);
            if ask == Ask::Bulk {
                for datagram in request.chunks_exact_mut(self.spec.bytes) {
                    datagram[..HEADER_BYTES].copy_from_slice(&header);
                }
            } else {
                request[..HEADER_BYTES].copy_from_slice(&header);
            }
            let piece = Piece {
                name: std::ptr::null_mut(),
                start: request.as_mut_ptr(),
                len: request.len(),
                segment: request.len(),
            };
            // SAFETY: there are as many requests as pieces in a batch, and a full batch is sent.
            unsafe { self.sends.push(socket.as_fd(), piece)? };
        }
        self.sent += ask.out() as u64;
        slot.sent_in_all = self.sent;
        Ok(())
    }

    /// Sends what goes out to a peer.
    #[inline]
    fn flush(&mut self, peer: usize) -> io::Result<()> {
        self.next_request = 0;
        self.sends.flush(self.peers[peer].socket.as_fd())
    }

    /// Takes the answers that a peer has, and asks again.
    fn receive(&mut self, peer: usize, window: &mut Window) -> io::Result<()> {
        let mut more = true;
        while more {
            more = self.received.receive(self.peers[peer].socket.as_fd())?;
            let now = sys::now_ns();
            for index in 0..self.received.len() {
                let train = self.received.get(index);
                let (start, len, segment) = (train.buffer.as_ptr(), train.len, train.segment);
                for offset in (0..len).step_by(segment.max(1)) {
                    // SAFETY: the part of the buffer that was received; nothing is received in this loop.
                    let datagram = unsafe {
                        std::slice::from_raw_parts(start.add(offset), segment.min(len - offset))
                    };
                    self.answered(peer, datagram, now, window)?;
                }
            }
            self.flush(peer)?;
        }
        Ok(())
    }

    #[inline]
    fn answered(
        &mut self,
        index: usize,
        datagram: &[u8],
        now: u64,
        window: &mut Window,
    ) -> io::Result<()> {
        let ask = self.spec.ask;
        let is_right = self.is_right(datagram);
        let peer = &mut self.peers[index];
        let (sequence, argument) = service::parse(datagram).ok_or_else(wrong)?;
        let number = (sequence % peer.slots.len() as u64) as usize;
        let slot = &mut peer.slots[number];
        if slot.sequence != sequence || slot.missing == 0 {
            // It came after it was counted as lost.
            return Ok(());
        }
        if !is_right {
            return Err(wrong());
        }
        slot.missing -= 1;
        if slot.missing > 0 {
            return Ok(());
        }
        if ask == Ask::Receive {
            let came = argument - self.counted_before;
            self.lost = self.lost.max(slot.sent_in_all.saturating_sub(came));
        }
        window.answered_together(now, slot.since_ns, ask.out().max(ask.back()) as u64);
        if self.is_over {
            return Ok(());
        }
        if self.spec.rate.is_none() {
            self.ask(index, number, now)?;
        } else if let Some(due) = peer.overdue.pop_front() {
            self.ask(index, number, due)?;
        } else {
            peer.free.push(number);
        }
        Ok(())
    }

    /// Whether an answer has its length and, where that is looked at, the bytes that were sent.
    #[inline]
    fn is_right(&self, datagram: &[u8]) -> bool {
        match self.spec.ask {
            Ask::Receive => datagram.len() == HEADER_BYTES,
            Ask::Send => datagram.len() == self.spec.bytes,
            Ask::Echo | Ask::Bulk if !self.spec.verify => datagram.len() == self.spec.bytes,
            Ask::Echo | Ask::Bulk => {
                service::parse(datagram).is_some_and(|(sequence, argument)| argument == !sequence)
                    && datagram[HEADER_BYTES..] == self.filler[HEADER_BYTES..]
            }
        }
    }

    /// Sends again what is not answered.
    fn ask_again(&mut self, now: u64) -> io::Result<()> {
        for peer in 0..self.peers.len() {
            for number in 0..self.peers[peer].slots.len() {
                let slot = &self.peers[peer].slots[number];
                if slot.missing == 0 || now.saturating_sub(slot.sent_ns) < self.lost_after_ns() {
                    continue;
                }
                // What the server received it counts itself.
                if self.spec.ask != Ask::Receive {
                    self.lost += slot.missing as u64;
                }
                let since = slot.since_ns;
                self.ask(peer, number, since)?;
            }
            self.flush(peer)?;
        }
        Ok(())
    }
}

/// The requests that a peer has under way: fewer where a receive buffer like this socket's would not hold those of all peers.
fn depth(spec: &Spec, socket: &UdpSocket) -> io::Result<usize> {
    let room = sys::option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF)? as usize;
    // The kernel gives a quarter of what was freed back late.
    let room = room / 4 * 3;
    let datagrams = spec.peers * spec.ask.out().max(spec.ask.back());
    Ok((room / (datagrams * kernel_bytes(spec.bytes))).clamp(1, spec.ask.depth()))
}

/// About what a datagram takes of a receive buffer.
fn kernel_bytes(bytes: usize) -> usize {
    (bytes + 448).next_power_of_two() + 512
}

fn wrong() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer is not what was asked for")
}
