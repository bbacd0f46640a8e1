//! The engine by itself, over sockets of this process, with operators that write down what they are told.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;

use duopoll_core::{Inputs, Lease, Next, Outputs, Ready, SEND_VECTORS_MAX, Slice};
use libc::iovec;

use super::*;
use crate::ring::testing::{ENTRIES, PUSHES, Pushes};

/// How long anything may take before the test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// What there is to send, at most.
static BYTES: [u8; 8 << 20] = [7; 8 << 20];

/// One registration, as its operators see it.
#[derive(Default)]
pub(super) struct Seen {
    socket: Option<OwnedFd>,
    /// What is lent to receives.
    room: [Box<[u8]>; 2],
    lent: bool,
    pub(super) received: Vec<u8>,
    pub(super) end: Option<io::Result<()>>,
    /// Bytes that are still to be sent.
    unsent: usize,
    sending: bool,
    /// Those of its sends.
    flags: i32,
    send_failed: bool,
    accepted: Vec<OwnedFd>,
    /// Says stop after each receive.
    pub(super) stops: bool,
    pub(super) released: bool,
}

/// The operators of a test.
#[derive(Default)]
pub(super) struct Recorder {
    seen: HashMap<Token, Seen>,
    due_sooner: bool,
}

impl Recorder {
    fn of(&mut self, token: Token) -> &mut Seen {
        self.seen.get_mut(&token).expect("registered")
    }
}

impl Seen {
    fn take(&mut self, bytes: &[u8]) -> Next {
        assert!(!self.released, "bytes for a socket that was released");
        self.received.extend_from_slice(bytes);
        if self.stops { Next::Stop } else { Next::More }
    }
}

// SAFETY: the room is boxed, and lives as long as the recorder, which outlives the ring.
unsafe impl Operators for Recorder {
    fn is_due_sooner(&self) -> bool {
        self.due_sooner
    }

    fn inputs(&mut self, token: Token, _: Lease, vectors: &mut [iovec; 2]) -> Inputs {
        let seen = self.of(token);
        assert!(!seen.lent && !seen.released);
        seen.lent = true;
        for (vector, room) in vectors.iter_mut().zip(&mut seen.room) {
            *vector = iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        }
        Inputs::Vectors(2)
    }

    unsafe fn input_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        let seen = self.of(token);
        seen.lent = false;
        match result {
            Ok(0) => seen.end = Some(Ok(())),
            Ok(n) => {
                let bytes = seen.room.concat()[..n].to_vec();
                return seen.take(&bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => seen.end = Some(Err(error)),
        }
        Next::More
    }

    fn donate(&mut self, token: Token, slice: Slice) -> Next {
        self.of(token).take(&slice)
    }

    fn copy_in(&mut self, token: Token, bytes: &[u8]) -> Option<Next> {
        Some(self.of(token).take(bytes))
    }

    fn outputs(&mut self, token: Token, vectors: &mut [iovec; SEND_VECTORS_MAX]) -> Outputs {
        let seen = self.of(token);
        assert!(!seen.sending, "a second send is under way");
        if seen.unsent == 0 {
            return Outputs::Nothing;
        }
        seen.sending = true;
        let iov_base = BYTES.as_ptr().cast_mut().cast();
        vectors[0] = iovec { iov_base, iov_len: seen.unsent };
        Outputs::Vectors { count: 1, bytes: seen.unsent, flags: seen.flags, awaited: true }
    }

    fn output_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        let seen = self.of(token);
        seen.sending = false;
        match result {
            Ok(n) => seen.unsent -= n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                seen.send_failed = true;
                seen.unsent = 0;
            }
        }
        Next::More
    }

    #[cfg(feature = "zerocopy")]
    fn zerocopy_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        self.output_ack(token, result)
    }

    #[cfg(feature = "zerocopy")]
    fn zerocopy_notice(&mut self, _: Token, _: u32, _: u32, _: bool) {}

    fn connected(&mut self, _: Token, result: io::Result<()>) {
        panic!("nobody connects: {result:?}");
    }

    fn accepted(&mut self, token: Token, result: io::Result<OwnedFd>) -> Next {
        self.of(token).accepted.push(result.expect("accepted"));
        Next::More
    }

    fn ready(&mut self, _: Token, _: Ready) -> Next {
        Next::More
    }

    unsafe fn released(&mut self, token: Token) {
        let seen = self.of(token);
        assert!(!seen.lent && !seen.sending, "the kernel still has its memory");
        seen.released = true;
        seen.socket = None;
    }
}

/// An engine, and what came of it. The engine goes first.
pub(super) struct Harness {
    pub(super) uring: Uring,
    recorder: Recorder,
    /// Bytes that are lent to a receive.
    lends: usize,
}

impl Harness {
    pub(super) fn new(allowed: Features) -> Harness {
        let uring = Uring::new(allowed).expect("io_uring");
        Harness { uring, recorder: Recorder::default(), lends: 64 }
    }

    /// Lends so many bytes to those that are registered from now on, in two pieces.
    pub(super) fn lend(&mut self, bytes: usize) {
        self.lends = bytes;
    }

    /// An engine with room for two submissions and 32 completions.
    fn tiny(allowed: Features) -> Harness {
        ENTRIES.set(Some(2));
        let harness = Harness::new(allowed);
        ENTRIES.set(None);
        harness
    }

    /// Whether receives go on by themselves.
    pub(super) fn has_multishot(&self) -> bool {
        self.uring.features.contains(Feature::MultishotReceive)
    }

    fn register(&mut self, socket: impl Into<OwnedFd>, kind: Kind) -> Token {
        let socket = socket.into();
        let token = self.register_shared(socket.as_raw_fd(), kind);
        self.seen(token).socket = Some(socket);
        token
    }

    /// Registers a socket that another registration closes.
    fn register_shared(&mut self, fd: RawFd, kind: Kind) -> Token {
        let token = Token::new(self.recorder.seen.len() as u32, 1);
        let room = [0, 1].map(|_| vec![0; self.lends / 2].into());
        self.recorder.seen.insert(token, Seen { room, ..Seen::default() });
        // SAFETY: the recorder keeps its sockets, and gives each token once.
        unsafe { self.uring.register(token, fd, kind, &mut self.recorder) }.expect("registered");
        token
    }

    /// A registered stream, and its peer.
    pub(super) fn stream(&mut self, listener: &TcpListener) -> (Token, TcpStream) {
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let (ours, _) = listener.accept().expect("accepted");
        ours.set_nonblocking(true).expect("a socket");
        (self.register(ours, Kind::Stream), peer)
    }

    pub(super) fn seen(&mut self, token: Token) -> &mut Seen {
        self.recorder.of(token)
    }

    fn send(&mut self, token: Token, bytes: usize) {
        self.seen(token).unsent += bytes;
        self.uring.send(token, &mut self.recorder);
    }

    pub(super) fn receive(&mut self, token: Token) {
        self.uring.receive(token, &mut self.recorder);
    }

    pub(super) fn deregister(&mut self, token: Token, how: Deregister) {
        self.uring.deregister(token, how, &mut self.recorder);
    }

    /// One turn that does not wait.
    pub(super) fn turn(&mut self) {
        self.uring.wait(Some(Duration::ZERO), &mut self.recorder).expect("a turn");
    }

    /// Turns until it holds.
    pub(super) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Harness) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            let patience = Some(Duration::from_millis(10));
            self.uring.wait(patience, &mut self.recorder).expect("a turn");
        }
    }

    pub(super) fn until_received(&mut self, token: Token, bytes: usize) {
        self.until("bytes arrive", |harness| harness.seen(token).received.len() >= bytes);
        assert_eq!(self.seen(token).received.len(), bytes);
    }

    /// Has the kernel complete what it can, a bounded part of it each time.
    pub(super) fn complete(&mut self) {
        for _ in 0..20 {
            self.uring.ring.enter(0, Some(Duration::ZERO)).expect("entered");
        }
    }

    /// Has the kernel complete what it can, and leaves it where the next turn finds it.
    fn harvest(&mut self) -> &VecDeque<cqueue::Entry> {
        self.complete();
        let Uring { ring, completions, .. } = &mut self.uring;
        ring.completions(completions, usize::MAX);
        completions
    }
}

pub(super) fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("bound")
}

/// What kernels of different age can do; on an older one it is the same twice.
pub(super) const TIERS: [Features; 3] = [Features::BASE, Features::LINUX_6_1, Features::ALL];

#[test]
fn a_receive_that_ends_with_its_bytes_is_armed_again() {
    const STREAMS: usize = 40;
    for tier in TIERS {
        let (mut harness, listener) = (Harness::tiny(tier), listener());
        if !harness.has_multishot() {
            continue;
        }
        let mut streams: Vec<_> = (0..STREAMS).map(|_| harness.stream(&listener)).collect();
        harness.until("all are armed", |harness| harness.uring.to_receive.is_empty());
        harness.turn();
        for (_, peer) in &mut streams {
            peer.write_all(b"x").expect("sent");
        }
        // There is no room for all of it, so some receives end.
        let ended = |entry: &&cqueue::Entry| entry.result() > 0 && !cqueue::more(entry.flags());
        let start = Instant::now();
        while harness.harvest().iter().filter(|entry| entry.result() > 0).count() < STREAMS {
            assert!(start.elapsed() < PATIENCE, "not all have received");
        }
        assert!(harness.uring.completions.iter().filter(ended).count() > 0, "none has ended");
        for (token, _) in &streams {
            harness.until_received(*token, 1);
        }
        for (_, peer) in &mut streams {
            peer.write_all(b"y").expect("sent");
        }
        for (token, _) in &streams {
            harness.until_received(*token, 2);
            assert_eq!(harness.seen(*token).received, b"xy");
            assert!(harness.seen(*token).end.is_none());
        }
    }
}

#[test]
fn the_end_is_seen_though_the_socket_is_said_not_to_be_empty() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        let (token, peer) = harness.stream(&listener);
        let (last, mut talker) = harness.stream(&listener);
        // What had been received when it was looked at, and what comes with the end.
        harness.turn();
        peer.shutdown(Shutdown::Write).expect("connected");
        talker.write_all(b"bye").expect("sent");
        talker.shutdown(Shutdown::Write).expect("connected");
        let start = Instant::now();
        let said =
            |entry: &cqueue::Entry| entry.result() == 0 && cqueue::sock_nonempty(entry.flags());
        while harness.has_multishot() && !harness.harvest().iter().any(said) {
            assert!(start.elapsed() < PATIENCE, "no end says that the socket is not empty");
        }
        harness.until("both end", |harness| {
            [token, last].into_iter().all(|token| harness.seen(token).end.is_some())
        });
        assert!(matches!(harness.seen(token).end, Some(Ok(()))));
        assert!(matches!(harness.seen(last).end, Some(Ok(()))));
        assert_eq!(harness.seen(last).received, b"bye");
        // It is not asked again.
        let receives = harness.uring.stats.receives;
        (0..10).for_each(|_| harness.turn());
        assert_eq!(harness.uring.stats.receives, receives);
    }
}

#[test]
fn completions_that_overflow_reach_everybody() {
    const STREAMS: usize = 100;
    for tier in TIERS {
        let (mut harness, listener) = (Harness::tiny(tier), listener());
        let mut streams: Vec<_> = (0..STREAMS).map(|_| harness.stream(&listener)).collect();
        let accepting = self::listener();
        let address = accepting.local_addr().expect("bound");
        accepting.set_nonblocking(true).expect("a socket");
        let accepting = harness.register(accepting, Kind::Listener);
        harness.until("all are armed", |harness| harness.uring.to_receive.is_empty());
        let waker = harness.uring.waker();
        let mut peers = Vec::new();
        for round in 1..=3 {
            harness.turn();
            let woken = harness.uring.stats.wakeups;
            let (leave, stay) = streams.split_at_mut(STREAMS / 10 * round);
            for (_, peer) in leave {
                let _ = peer.shutdown(Shutdown::Both);
            }
            for (_, peer) in &mut *stay {
                peer.write_all(b"x").expect("sent");
            }
            peers.extend((0..10).map(|_| TcpStream::connect(address).expect("connected")));
            waker.notify();
            harness.complete();
            harness.until("all is seen", |harness| {
                streams.iter().enumerate().all(|(at, (token, _))| {
                    let seen = harness.seen(*token);
                    let leaves = at < STREAMS / 10 * round;
                    if leaves { seen.end.is_some() } else { seen.received.len() == round }
                }) && harness.seen(accepting).accepted.len() == peers.len()
                    && harness.uring.stats.wakeups > woken
            });
        }
        assert!(harness.uring.stats.completion_overflows > 0, "{tier}: nothing has overflowed");
    }
}

#[test]
fn bytes_that_race_with_a_cancellation_arrive() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        let (token, mut peer) = harness.stream(&listener);
        harness.turn();
        // They are there first, and the cancellation is on its way when they are looked at.
        peer.write_all(b"a").expect("sent");
        harness.harvest();
        harness.uring.stop(token);
        harness.turn();
        harness.receive(token);
        harness.until_received(token, 1);
        // They come after it was asked for, and before it is submitted.
        harness.uring.stop(token);
        peer.write_all(b"b").expect("sent");
        harness.turn();
        harness.receive(token);
        harness.until_received(token, 2);
        // Receiving goes on before the cancellation is over.
        harness.turn();
        harness.uring.stop(token);
        harness.receive(token);
        harness.turn();
        peer.write_all(b"c").expect("sent");
        harness.until_received(token, 3);
        // Its user says stop with every byte, and goes on each time.
        harness.seen(token).stops = true;
        for n in 4..40 {
            peer.write_all(b"d").expect("sent");
            harness.until_received(token, n);
            harness.receive(token);
        }
        // When the cancellation is over, nothing comes any more, each time.
        for n in [40, 42] {
            peer.write_all(b"e").expect("sent");
            harness.until_received(token, n);
            (0..3).for_each(|_| harness.turn());
            peer.write_all(b"f").expect("sent");
            (0..3).for_each(|_| harness.turn());
            assert_eq!(harness.seen(token).received.len(), n, "{tier}: it goes on");
            harness.receive(token);
            harness.until_received(token, n + 1);
            harness.receive(token);
        }
        assert!(harness.seen(token).end.is_none());
        assert_eq!(harness.seen(token).received[..4], *b"abcd");
    }
}

#[test]
fn bytes_that_race_with_leaving_are_received_or_left_in_the_socket() {
    for tier in TIERS {
        for early in [true, false] {
            let (mut harness, listener) = (Harness::new(tier), listener());
            let (token, mut peer) = harness.stream(&listener);
            let socket = harness.seen(token).socket.as_ref().expect("open").try_clone();
            let mut socket = TcpStream::from(socket.expect("a descriptor"));
            harness.turn();
            if early {
                peer.write_all(b"abc").expect("sent");
                harness.harvest();
            }
            harness.deregister(token, Deregister::Leave);
            if !early {
                peer.write_all(b"abc").expect("sent");
            }
            harness.until("it is left", |harness| harness.seen(token).released);
            peer.write_all(b"def").expect("still open");
            let mut all = harness.seen(token).received.clone();
            socket.set_nonblocking(false).expect("a socket");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let received = all.len();
            all.resize(6, 0);
            socket.read_exact(&mut all[received..]).expect("the rest");
            assert_eq!(all, b"abcdef");
        }
    }
}

/// The number of a descriptor is not to be had as long as that is open.
fn is_open(fd: RawFd) -> bool {
    // SAFETY: takes no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

#[test]
fn a_close_sends_the_fin_and_keeps_the_descriptor_while_operations_are_in_flight() {
    for tier in TIERS {
        for how in [Deregister::Close, Deregister::Shutdown] {
            // What was not submitted yet is in flight, too.
            for submitted in [true, false] {
                let (mut harness, listener) = (Harness::new(tier), listener());
                let (token, mut peer) = harness.stream(&listener);
                let fd = harness.seen(token).socket.as_ref().expect("open").as_raw_fd();
                // More than the peer's kernel takes.
                harness.send(token, BYTES.len());
                if submitted {
                    harness.until("the send waits", |harness| {
                        let socket = harness.uring.sockets.get_mut(token).expect("registered");
                        socket.slow && socket.outbound.is_some() && socket.inbound.is_some()
                    });
                    harness.turn();
                }
                harness.deregister(token, how);
                let seen = harness.seen(token);
                assert!(seen.sending && !seen.released, "{tier} {how:?}: released");
                assert!(is_open(fd), "{tier} {how:?}: closed");
                // Before the engine takes another turn, the peer knows.
                let mut rest = Vec::new();
                peer.read_to_end(&mut rest).expect("the end");
                assert!(rest.len() < BYTES.len());
                harness.until("it is released", |harness| harness.seen(token).released);
                assert!(harness.seen(token).send_failed);
            }
        }
    }
}

#[test]
fn a_close_waits_for_a_receive_that_goes_on() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        let (token, mut peer) = harness.stream(&listener);
        let fd = harness.seen(token).socket.as_ref().expect("open").as_raw_fd();
        peer.write_all(b"x").expect("sent");
        harness.until_received(token, 1);
        harness.turn();
        harness.deregister(token, Deregister::Close);
        assert!(!harness.seen(token).released && is_open(fd), "{tier}: released");
        assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
        harness.until("it is released", |harness| harness.seen(token).released);
    }
}

#[test]
fn one_send_is_in_flight_at_a_time() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        let (token, mut peer) = harness.stream(&listener);
        // The operators object to being asked for a second one.
        harness.send(token, BYTES.len() / 2);
        harness.send(token, BYTES.len() / 4);
        harness.turn();
        harness.send(token, BYTES.len() / 4);
        thread::scope(|scope| {
            let reader = scope.spawn(move || peer.read_exact(&mut vec![0; BYTES.len()]));
            harness.until("all is sent", |harness| harness.seen(token).unsent == 0);
            reader.join().expect("no panic").expect("all arrives");
        });
        assert_eq!(harness.uring.stats.sent_bytes, BYTES.len() as u64);
    }
}

#[test]
fn an_abort_ends_what_is_in_flight() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        let (token, mut peer) = harness.stream(&listener);
        harness.send(token, BYTES.len());
        harness.turn();
        harness.deregister(token, Deregister::Abort);
        assert!(!harness.seen(token).released);
        let error = io::copy(&mut peer, &mut io::sink()).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        harness.until("it is released", |harness| harness.seen(token).released);
    }
}

/// Why the type is not `Send`. The engine goes on as if nothing had happened.
#[test]
fn another_thread_is_refused_by_the_kernel() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        let (token, mut peer) = harness.stream(&listener);
        harness.turn();
        let ring = harness.uring.ring.as_raw_fd();
        let refused = thread::scope(|scope| {
            let enter = scope.spawn(move || {
                const NOTHING: usize = 0;
                // SAFETY: takes no memory.
                let entered =
                    unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, 1, 0, 1, NOTHING, 0) };
                (entered == -1).then(|| io::Error::last_os_error().raw_os_error())
            });
            enter.join().expect("no panic")
        });
        if harness.uring.features.contains(Feature::DeferredCompletions) {
            assert_eq!(refused, Some(Some(libc::EEXIST)));
        }
        peer.write_all(b"x").expect("sent");
        harness.until_received(token, 1);
    }
}

#[test]
fn without_buffers_receives_bring_their_own_memory() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        if !harness.has_multishot() {
            continue;
        }
        // It would be polled, and take none.
        harness.uring.large_bytes = usize::MAX;
        let (flooded, mut flood) = harness.stream(&listener);
        let (idle, mut quiet) = harness.stream(&listener);
        harness.turn();
        let buffers = harness.uring.buffers.as_mut().expect("multishot");
        let wanted = buffers.want(0);
        flood.set_nonblocking(true).expect("a socket");
        let mut sent = 0;
        harness.until("all buffers are used up", |harness| {
            sent += flood.write(&BYTES[..64 << 10]).unwrap_or(0);
            harness.uring.buffers.as_ref().is_some_and(Buffers::is_empty)
        });
        sent += flood.write(&BYTES[..64 << 10]).unwrap_or(0);
        quiet.write_all(b"x").expect("sent");
        let (late, mut later) = harness.stream(&listener);
        later.write_all(b"y").expect("sent");
        // Each of them finds out at most once, and goes on with memory of its own.
        harness.until_received(flooded, sent);
        harness.until_received(idle, 1);
        harness.until_received(late, 1);
        let shortages = harness.uring.stats.buffer_shortages;
        assert!(shortages > 0, "{tier}: nothing was short");
        quiet.write_all(b"x").expect("sent");
        harness.until_received(idle, 2);
        assert_eq!(harness.uring.stats.buffer_shortages, shortages, "{tier}: it tries again");
        // Nor does a turn that may sleep pass at once.
        (0..3).for_each(|_| harness.turn());
        assert!(harness.uring.to_receive.is_empty() && !harness.uring.turn_left_more);
        assert!([flooded, idle, late].iter().all(|token| harness.seen(*token).end.is_none()));

        harness.uring.buffers.as_mut().expect("multishot").want(wanted);
        sent += flood.write(&BYTES[..64 << 10]).expect("room");
        harness.until_received(flooded, sent);
        harness.until_received(idle, 2);
        harness.until_received(late, 1);
    }
}

/// Whoever is asked first takes all of it.
#[test]
fn a_flood_that_takes_every_buffer_each_time_is_not_asked_first_each_time() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        if !harness.has_multishot() {
            continue;
        }
        // It would be polled, and take none.
        harness.uring.large_bytes = usize::MAX;
        let (flooded, mut flood) = harness.stream(&listener);
        let mut quiet = [(); 3].map(|()| harness.stream(&listener));
        harness.turn();
        harness.uring.buffers.as_mut().expect("multishot").want(1);
        flood.set_nonblocking(true).expect("a socket");
        let fill = |flood: &mut TcpStream| while flood.write(&BYTES[..64 << 10]).is_ok() {};
        harness.until("few are left", |harness| {
            fill(&mut flood);
            harness.turn();
            harness.uring.stats.buffer_shortages > 0
        });
        for (_, peer) in &mut quiet {
            peer.write_all(b"x").expect("sent");
        }
        for _ in 0..2 + 2 * quiet.len() {
            harness.uring.buffers.as_mut().expect("multishot").want(1);
            fill(&mut flood);
            harness.turn();
        }
        assert!(!harness.seen(flooded).received.is_empty());
        for (token, _) in &quiet {
            assert_eq!(harness.seen(*token).received, b"x", "{tier}: it starves");
        }
    }
}

#[test]
fn what_finds_no_room_is_not_in_flight_and_is_queued_later() {
    for tier in TIERS {
        let (mut harness, listener) = (Harness::new(tier), listener());
        PUSHES.set(Pushes::Refused);
        let (token, mut peer) = harness.stream(&listener);
        let accepting = self::listener();
        let address = accepting.local_addr().expect("bound");
        accepting.set_nonblocking(true).expect("a socket");
        let accepting = harness.register(accepting, Kind::Listener);
        let _connecting = TcpStream::connect(address).expect("connected");
        harness.send(token, 5);
        peer.write_all(b"abc").expect("sent");
        harness.uring.waker().notify();
        (0..5).for_each(|_| harness.turn());
        for token in [token, accepting] {
            let socket = harness.uring.sockets.get_mut(token).expect("registered");
            assert!(socket.is_idle(), "{tier}: {socket:?}");
            assert!(!harness.seen(token).lent && !harness.seen(token).sending, "{tier}");
        }
        assert!(!harness.uring.waker_armed && harness.uring.quick_sends == 0);
        assert_eq!(harness.uring.stats.wakeups + harness.uring.stats.receives, 0);

        PUSHES.set(Pushes::Accepted);
        harness.until_received(token, 3);
        harness.until("the rest is done", |harness| {
            harness.seen(token).unsent == 0
                && harness.seen(accepting).accepted.len() == 1
                && harness.uring.stats.wakeups > 0
        });
        peer.read_exact(&mut [0; 5]).expect("it was sent");

        // A cancellation is kept, too.
        harness.turn();
        PUSHES.set(Pushes::Refused);
        harness.deregister(token, Deregister::Leave);
        (0..5).for_each(|_| harness.turn());
        assert_eq!(harness.uring.to_cancel.len(), 1, "{tier}");
        assert!(!harness.seen(token).released, "{tier}");
        PUSHES.set(Pushes::Accepted);
        harness.until("it is released", |harness| harness.seen(token).released);
    }
}

#[test]
fn nothing_is_lost_when_every_other_entry_finds_no_room() {
    const ROUNDS: usize = 40;
    for tier in TIERS {
        for first in [Pushes::RefusedInTurn, Pushes::AcceptedInTurn] {
            let (mut harness, listener) = (Harness::new(tier), listener());
            PUSHES.set(first);
            let (token, mut peer) = harness.stream(&listener);
            for round in 1..=ROUNDS {
                // As much as is lent, so that it is received from again without a poll.
                peer.write_all(&BYTES[..64]).expect("sent");
                harness.send(token, 100);
                harness.until_received(token, round * 64);
                harness.until("it is sent", |harness| harness.seen(token).unsent == 0);
                peer.read_exact(&mut [0; 100]).expect("it was sent");
                if round % 3 == 0 {
                    harness.uring.stop(token);
                    harness.turn();
                    harness.receive(token);
                }
            }
            assert!(harness.seen(token).end.is_none());
            harness.deregister(token, Deregister::Leave);
            harness.until("it is released", |harness| harness.seen(token).released);
            PUSHES.set(Pushes::Accepted);
        }
    }
}

#[cfg(feature = "zerocopy")]
#[test]
fn a_send_without_a_copy_that_finds_no_room_leaves_nothing_behind() {
    let (mut harness, listener) = (Harness::new(Features::ALL), listener());
    if !harness.uring.features.contains(Feature::ZeroCopySend) {
        return;
    }
    let (token, mut peer) = harness.stream(&listener);
    harness.seen(token).flags = libc::MSG_ZEROCOPY;
    PUSHES.set(Pushes::Refused);
    harness.send(token, 1000);
    harness.turn();
    assert!(harness.uring.zero_copies.is_empty() && !harness.seen(token).sending);
    PUSHES.set(Pushes::Accepted);
    harness.until("it is sent", |harness| harness.seen(token).unsent == 0);
    peer.read_exact(&mut [0; 1000]).expect("it was sent");
    harness.until("it is told of", |harness| harness.uring.zero_copies.is_empty());
}

#[test]
fn an_engine_whose_waker_found_no_room_does_not_sleep() {
    let mut harness = Harness::new(Features::ALL);
    let waker = harness.uring.waker();
    PUSHES.set(Pushes::Refused);
    // It would sleep for ever.
    harness.uring.wait(None, &mut harness.recorder).expect("a turn");
    PUSHES.set(Pushes::Accepted);
    waker.notify();
    harness.uring.wait(None, &mut harness.recorder).expect("a turn");
    assert_eq!(harness.uring.stats.wakeups, 1);
}

#[test]
fn an_engine_does_not_sleep_if_something_has_come_up_meanwhile() {
    for tier in TIERS {
        let mut harness = Harness::new(tier);
        harness.turn();
        harness.recorder.due_sooner = true;
        // It would sleep for ever.
        harness.uring.wait(None, &mut harness.recorder).expect("a turn");
    }
}

/// Whoever owned the memory must keep it: the kernel may not be done with it when the ring is closed.
#[test]
fn a_ring_goes_with_ten_thousand_operations_in_flight() {
    const STREAMS: usize = 200;
    /// Registrations that share a stream, so that fewer descriptors do.
    const SHARES: usize = 50;
    static KEPT: Mutex<Option<Recorder>> = Mutex::new(None);
    let mut harness = Harness::new(Features::BASE);
    let mut peers = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        let (ours, peer) = UnixStream::pair().expect("descriptors");
        ours.set_nonblocking(true).expect("a socket");
        let fd = ours.as_raw_fd();
        let token = harness.register(ours, Kind::Stream);
        harness.send(token, BYTES.len());
        for _ in 1..SHARES {
            harness.register_shared(fd, Kind::Stream);
        }
        peers.push(peer);
    }
    harness.until("all are in flight", |harness| {
        let tokens = (0..STREAMS * SHARES).map(|at| Token::new(at as u32, 1));
        let sockets = &mut harness.uring.sockets;
        let mut waits =
            |token| sockets.get_mut(token).is_some_and(|socket| socket.inbound.is_some());
        let receives = tokens.filter(|token| waits(*token)).count();
        receives == 10_000 && harness.uring.to_send.is_empty()
    });
    let Harness { uring, mut recorder, .. } = harness;
    drop(uring);
    // What comes now comes to nobody.
    for mut peer in &peers {
        peer.write_all(b"late").expect("sent");
    }
    recorder.seen.values_mut().for_each(|seen| seen.socket = None);
    *KEPT.lock().expect("no panic") = Some(recorder);
}
