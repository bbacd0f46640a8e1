//! An engine without a kernel: [`Poll`] over simulated streams, in any order that its contract allows.
//!
//! A receive is asked for and acknowledged back to back, as epoll does, or asked for at one time and acknowledged
//! turns later, as io_uring does, or its bytes are donated; a send likewise. Which, how much, when and in which order
//! is chance. Memory that is lent to receive into is written over while it is lent, and memory that is being sent
//! must not change.

use std::collections::HashSet;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use duopoll_core::{
    Capabilities, Deregister, EngineStats, Inputs, Kind, Lease, Next, Notify, Operators, Outputs,
    Pending, Poll, Pool, SEND_VECTORS_MAX, Slice, Token,
};
use libc::iovec;

use crate::clock::{Micros, SimClock};
use crate::link::{Link, PeerAction};
use crate::rng::{Pattern, Rng};

const NO_VECTOR: iovec = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
/// What goes wrong with a socket.
const ERRNOS: [i32; 4] = [libc::ECONNRESET, libc::EPIPE, libc::ENOMEM, libc::ETIMEDOUT];
/// For how long acknowledgements are kept back that nobody waits for.
const KEEPS_MAX: Micros = 10_000;
/// How much of a lent vector is written over, at either end of it.
const SCRIBBLE_BYTES: usize = 512;

pub(crate) struct SimEngine {
    sockets: Vec<Socket>,
    released: HashSet<Token>,
    rng: Rng,
    clock: Arc<SimClock>,
    waker: Arc<Waker>,
    /// What is registered next; the registration fails if this errno is set.
    pub(crate) next: Option<(Rc<Link>, Option<i32>)>,
    /// What others have planned next: a wait goes no further.
    pub(crate) horizon: Option<Micros>,
    /// The last wait would have waited for ever.
    pub(crate) at_rest: bool,
    /// Everything is being ended.
    pub(crate) by_force: bool,
    /// The driver is told to drain.
    pub(crate) drains: bool,
    /// Nothing goes wrong any more.
    pub(crate) calm: bool,
    /// Sends without a copy, of which no notice was given.
    #[cfg(feature = "zerocopy")]
    zero_copies: Vec<ZeroCopy>,
    stats: EngineStats,
}

struct Socket {
    token: Token,
    link: Rc<Link>,
    /// Receiving: the operators said stop; there is nothing more to receive.
    stopped: bool,
    ended: bool,
    lent: Option<Lent>,
    /// Asks for vectors before there is anything to receive.
    lends_early: bool,
    /// Sending: waits for room; has to ask for more.
    blocked: bool,
    ask: bool,
    /// It was told so while it was sending.
    told: bool,
    sending: Option<Sending>,
    kept: Kept,
    /// The acknowledgement is awaited after all.
    due: bool,
    closing: bool,
    /// Sends without a copy that were taken.
    #[cfg(feature = "zerocopy")]
    zero_copies: u32,
    /// When what is in flight may complete, or the registration be released.
    receive_at: Micros,
    send_at: Micros,
    release_at: Micros,
}

/// What becomes of the acknowledgement of a send that was taken at once, as io_uring does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kept {
    /// It was not.
    #[default]
    No,
    /// It is to be, with the next wait.
    Queued,
    /// It was: the acknowledgement comes with the next thing that happens.
    Taken,
}

/// Vectors for a receive that is in flight.
struct Lent {
    vectors: [iovec; 2],
    count: usize,
}

/// Vectors of a send that is in flight, and where their bytes belong.
struct Sending {
    vectors: Vec<iovec>,
    offset: u64,
    bytes: u64,
    #[cfg(feature = "zerocopy")]
    without_copy: bool,
}

/// A send that was taken, and whose memory is still read from.
#[cfg(feature = "zerocopy")]
struct ZeroCopy {
    token: Token,
    link: Rc<Link>,
    number: u32,
    sent: Sending,
    at: Micros,
}

/// What an engine could do with a socket.
#[derive(Clone, Copy, Debug)]
enum Event {
    Lend,
    Receive,
    Donate,
    /// Bytes of the engine's own, while memory is lent: a mistake.
    DonateWrongly,
    Received,
    Ask,
    Sent,
    Acknowledged,
    Connected,
    Release,
}

#[derive(Debug, Default)]
pub(crate) struct Waker(AtomicBool);

impl Notify for Waker {
    fn notify(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl SimEngine {
    pub(crate) fn new(rng: Rng, clock: Arc<SimClock>) -> SimEngine {
        SimEngine {
            sockets: Vec::new(),
            released: HashSet::new(),
            rng,
            clock,
            waker: Arc::default(),
            next: None,
            horizon: None,
            at_rest: false,
            by_force: false,
            drains: false,
            calm: false,
            #[cfg(feature = "zerocopy")]
            zero_copies: Vec::new(),
            stats: EngineStats::default(),
        }
    }

    /// Registrations that are not released yet.
    pub(crate) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Operations whose memory is lent.
    pub(crate) fn in_flight(&self) -> usize {
        let of = |socket: &Socket| {
            usize::from(socket.lent.is_some()) + usize::from(socket.sending.is_some())
        };
        let in_flight: usize = self.sockets.iter().map(of).sum();
        in_flight + self.without_notice()
    }

    /// Sends without a copy, of which no notice was given.
    pub(crate) fn without_notice(&self) -> usize {
        #[cfg(feature = "zerocopy")]
        return self.zero_copies.len();
        #[cfg(not(feature = "zerocopy"))]
        0
    }

    /// What the kernel could do at any time: write to what it may write, and read what it is to send.
    pub(crate) fn use_lent_memory(&mut self) {
        for socket in &self.sockets {
            if let Some(lent) = &socket.lent {
                lent.scribble(self.rng.next());
            }
            if let Some(sending) = &socket.sending {
                sending.check(&socket.link);
            }
        }
        #[cfg(feature = "zerocopy")]
        for send in &self.zero_copies {
            send.sent.check(&send.link);
        }
    }

    /// The socket, unless it is being closed: then calls for it do nothing.
    fn open(&mut self, token: Token) -> Option<&mut Socket> {
        self.sockets.iter_mut().find(|socket| socket.token == token && !socket.closing)
    }

    /// Takes the sends that are queued, where there is room. Gives those whose acknowledgement is kept back.
    fn take_queued(&mut self) -> Vec<Token> {
        let now = self.clock.micros();
        let mut kept = Vec::new();
        for socket in &mut self.sockets {
            let link = &socket.link;
            if let (Kept::Queued, Some(sending)) = (socket.kept, &socket.sending) {
                let whole = link.room() >= sending.bytes && link.state().reset.is_none();
                socket.kept = if whole { Kept::Taken } else { Kept::No };
                if whole {
                    let mut state = link.state();
                    state.sent += sending.bytes;
                    state.kept = sending.bytes;
                    state.moved(now);
                }
            }
            if socket.kept == Kept::Taken {
                kept.push(socket.token);
            }
        }
        kept
    }

    /// Does some of what could happen, and sleeps until something can, or the time is over.
    fn work<O: Operators>(&mut self, timeout: Option<Duration>, operators: &mut O) {
        let began = self.clock.micros();
        let timeout = timeout.map(|timeout| began + timeout.as_micros() as Micros);
        let keeps = self.sockets.iter().any(|socket| socket.kept == Kept::Taken);
        let timeout = timeout.into_iter().chain(keeps.then_some(began + KEEPS_MAX)).min();
        let until = [timeout, self.horizon].into_iter().flatten().min();
        let most = self.rng.within(1, 12);
        let mut handled = 0;
        self.use_lent_memory();
        while handled < most {
            let now = self.clock.micros();
            self.run_peers(now);
            #[cfg(feature = "zerocopy")]
            if self.give_notice(now, operators) {
                handled += 1;
                continue;
            }
            let events = self.events(now);
            if !events.is_empty() {
                let (index, event) = events[self.rng.below(events.len() as u64) as usize];
                self.handle(index, event, operators);
                handled += 1;
                continue;
            }
            if handled > 0 || self.waker.0.swap(false, Ordering::Relaxed) {
                break;
            }
            // Sleeps.
            let change = self.next_change(now);
            let Some(wakes) = change.into_iter().chain(until).min() else {
                self.at_rest = true;
                break;
            };
            if Some(wakes) == until {
                let late = self.rng.pick(&[0, 0, 0, 700, 30_000]);
                self.clock.advance_to(wakes.max(now) + late);
                break;
            }
            self.clock.advance_to(wakes);
        }
    }

    /// Everything that could happen now.
    fn events(&self, now: Micros) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        for (index, socket) in self.sockets.iter().enumerate() {
            let mut add = |event| events.push((index, event));
            let link = &socket.link;
            let has_input = link.has_input() && now >= socket.receive_at;
            let connect = link.state().connect;
            if let Some(connect) = connect.filter(|_| !socket.closing) {
                if connect.at <= now {
                    add(Event::Connected);
                }
                continue;
            }
            if socket.lent.is_some() {
                if has_input || (socket.closing && now >= socket.receive_at) {
                    add(Event::Received);
                }
                if link.mistaken && !socket.closing && !self.calm && link.state().failed.is_none() {
                    add(Event::DonateWrongly);
                }
            } else if !socket.stopped && !socket.ended && !socket.closing {
                if socket.lends_early {
                    add(Event::Lend);
                }
                if has_input {
                    add(Event::Receive);
                    if link.waiting() > 0 {
                        add(Event::Donate);
                    }
                }
            }
            let can_send = link.room() > 0 || link.state().reset.is_some();
            if socket.kept != Kept::No {
                if socket.kept == Kept::Taken && socket.due {
                    add(Event::Acknowledged);
                }
            } else if socket.sending.is_some() {
                if now >= socket.send_at && (can_send || socket.closing) {
                    add(Event::Sent);
                }
            } else if !socket.closing
                && (socket.ask || socket.blocked)
                && (can_send || !socket.blocked)
            {
                add(Event::Ask);
            }
            if socket.closing && now >= socket.release_at && socket.is_idle() {
                add(Event::Release);
            }
        }
        events
    }

    /// When more could happen than now.
    fn next_change(&self, now: Micros) -> Option<Micros> {
        let times = self.sockets.iter().flat_map(|socket| {
            let link = &socket.link;
            let state = link.state();
            let script = state.script.front().map(|(at, _)| *at);
            let connect = state.connect.map(|connect| connect.at);
            [
                script,
                connect,
                Some(socket.receive_at),
                Some(socket.send_at),
                Some(socket.release_at),
            ]
        });
        let times = times.flatten();
        #[cfg(feature = "zerocopy")]
        let times = times.chain(self.zero_copies.iter().map(|send| send.at));
        times.filter(|at| *at > now).min()
    }

    fn run_peers(&self, now: Micros) {
        for socket in &self.sockets {
            socket.link.run_peer(now);
        }
    }

    fn handle<O: Operators>(&mut self, index: usize, event: Event, operators: &mut O) {
        note!("{} link {}: {event:?}", self.clock.micros(), self.sockets[index].link.id);
        match event {
            Event::Lend => {
                self.lend(index, Lease::InFlight, operators);
            }
            Event::Receive => {
                let lease = if self.rng.one_in(2) { Lease::UntilAck } else { Lease::InFlight };
                if self.lend(index, lease, operators) {
                    self.received(index, operators);
                }
            }
            Event::Donate => self.donate(index, operators),
            Event::DonateWrongly => self.donate_wrongly(index, operators),
            Event::Received => self.received(index, operators),
            Event::Ask => self.ask(index, operators),
            Event::Sent => self.sent(index, operators),
            Event::Acknowledged => self.acknowledge(index, operators),
            Event::Connected => self.connected(index, operators),
            Event::Release => {
                let socket = self.sockets.swap_remove(index);
                self.release(socket, operators);
            }
        }
    }

    /// Asks where to receive to.
    fn lend<O: Operators>(&mut self, index: usize, lease: Lease, operators: &mut O) -> bool {
        let delay = if self.rng.one_in(4) { self.rng.span() } else { 0 };
        let socket = &mut self.sockets[index];
        let mut vectors = [NO_VECTOR; 2];
        match operators.inputs(socket.token, lease, &mut vectors) {
            Inputs::Stop => {
                socket.stopped = true;
                false
            }
            Inputs::Vectors(count) => {
                assert!((1..=2).contains(&count));
                let lent = Lent { vectors, count };
                lent.scribble(self.rng.next());
                socket.lent = Some(lent);
                socket.receive_at = self.clock.micros() + delay;
                true
            }
        }
    }

    /// A receive is over: with bytes, the end or an error, whatever has come, or with nothing.
    fn received<O: Operators>(&mut self, index: usize, operators: &mut O) {
        let (now, calm) = (self.clock.micros(), self.calm);
        let rng = &mut self.rng;
        let socket = &mut self.sockets[index];
        let Some(lent) = socket.lent.take() else { return };
        lent.scribble(rng.next());
        socket.lends_early = rng.one_in(2);
        let link = socket.link.clone();
        let mut state = link.state();
        let waiting = state.arrived - state.delivered;
        let may_end = matches!(state.deregistered, Some(how) if how != Deregister::Leave);
        let result = if rng.one_in(8) || (socket.closing && rng.one_in(3)) {
            Err(io::ErrorKind::WouldBlock.into())
        } else if link.faulty && !calm && rng.one_in(40) {
            Err(io::Error::from_raw_os_error(rng.pick(&ERRNOS)))
        } else if waiting > 0 {
            Ok(some(rng, waiting.min(lent.len() as u64)))
        } else if let Some(errno) = state.reset {
            Err(io::Error::from_raw_os_error(errno))
        } else if state.fin || may_end {
            Ok(0)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        };
        self.stats.receives += 1;
        match &result {
            Ok(0) => {
                socket.ended = true;
                // Where the socket was shut down under the receive, this is not the peer's FIN.
                state.ended |= state.fin || !may_end;
            }
            Ok(n) => {
                lent.fill(link.incoming, state.delivered, *n);
                state.delivered += *n as u64;
                state.moved(now);
                self.stats.received_bytes += *n as u64;
            }
            Err(error) => {
                if let Some(errno) = error.raw_os_error() {
                    socket.ended = true;
                    state.fail(errno);
                }
            }
        }
        drop(state);
        let token = socket.token;
        // SAFETY: `fill` wrote so many bytes.
        if unsafe { operators.input_ack(token, result) } == Next::Stop {
            self.sockets[index].stopped = true;
        }
    }

    fn donate<O: Operators>(&mut self, index: usize, operators: &mut O) {
        let socket = &mut self.sockets[index];
        let link = socket.link.clone();
        let mut state = link.state();
        let n = some(&mut self.rng, state.arrived - state.delivered);
        let bytes = link.incoming.bytes(state.delivered, n);
        state.delivered += n as u64;
        state.moved(self.clock.micros());
        drop(state);
        let next = match self.rng.below(3) {
            0 => operators.copy_in(socket.token, &bytes).expect("memory"),
            1 => {
                let slice = Slice::copy_from(&bytes, Pool::global()).expect("memory");
                operators.donate(socket.token, slice)
            }
            _ => operators.donate(socket.token, Slice::from(bytes)),
        };
        socket.stopped = next == Next::Stop;
    }

    /// The lent memory must stay as it is, and bytes whose place nobody knows must not become part of the stream.
    fn donate_wrongly<O: Operators>(&mut self, index: usize, operators: &mut O) {
        mark!("a donation while memory is lent");
        let socket = &mut self.sockets[index];
        let next = match self.rng.below(2) {
            0 => operators.copy_in(socket.token, b"nowhere").expect("refused"),
            _ => operators.donate(socket.token, Slice::from_static(b"nowhere")),
        };
        assert_eq!(next, Next::Stop);
        socket.stopped = true;
        socket.link.state().fail(libc::EIO);
    }

    /// Asks what to send.
    fn ask<O: Operators>(&mut self, index: usize, operators: &mut O) {
        let socket = &mut self.sockets[index];
        socket.ask = false;
        socket.told = false;
        socket.blocked = false;
        let mut vectors = [NO_VECTOR; SEND_VECTORS_MAX];
        let link = socket.link.clone();
        match operators.outputs(socket.token, &mut vectors) {
            Outputs::Nothing => {}
            Outputs::Finish => {
                let mut state = link.state();
                assert!(!state.fin_out, "link {}: two FINs", link.id);
                assert_eq!(
                    state.sent, state.flushed,
                    "link {}: the FIN is early: {state:?}",
                    link.id
                );
                state.fin_out = true;
                if let Some(delay) = link.answers {
                    let at = self.clock.micros() + delay;
                    let index = state.script.partition_point(|(other, _)| *other <= at);
                    state.script.insert(index, (at, PeerAction::Fin));
                }
            }
            Outputs::Vectors { count, bytes, flags, awaited } => {
                assert_eq!(flags & !(libc::MSG_MORE | libc::MSG_ZEROCOPY), 0);
                let vectors = vectors[..count].to_vec();
                let (sent, flushed, over) = {
                    let state = link.state();
                    (state.sent, state.flushed, state.fin_out || state.send_refused)
                };
                let sending = Sending {
                    vectors,
                    offset: sent,
                    bytes: bytes as u64,
                    #[cfg(feature = "zerocopy")]
                    without_copy: flags & libc::MSG_ZEROCOPY != 0,
                };
                sending.check(&link);
                assert!(!over, "link {}: bytes behind the FIN or an error", link.id);
                assert!(sent + sending.bytes <= flushed, "link {}: more than was flushed", link.id);
                socket.sending = Some(sending);
                let connected = link.state().connect.is_none();
                let copied = flags & libc::MSG_ZEROCOPY == 0;
                if !awaited && connected && copied && self.rng.one_in(2) {
                    let socket = &mut self.sockets[index];
                    (socket.kept, socket.due) = (Kept::Queued, false);
                } else if connected && self.rng.one_in(2) {
                    self.sent(index, operators);
                } else {
                    let delay = if self.rng.one_in(4) { self.rng.span() } else { 0 };
                    self.sockets[index].send_at = self.clock.micros() + delay;
                }
            }
        }
    }

    /// Tells of a send that was taken whole.
    fn acknowledge<O: Operators>(&mut self, index: usize, operators: &mut O) {
        let socket = &mut self.sockets[index];
        socket.kept = Kept::No;
        let Some(sending) = socket.sending.take() else { return };
        sending.check(&socket.link);
        let mut state = socket.link.state();
        state.kept = 0;
        // The driver hears of it now.
        state.count(self.clock.micros());
        state.waited_since_late = 0;
        drop(state);
        self.stats.sends += 1;
        self.stats.sent_bytes += sending.bytes;
        let n = usize::try_from(sending.bytes).expect("a length");
        if operators.output_ack(socket.token, Ok(n)) != Next::Stop {
            self.sockets[index].ask = true;
        }
    }

    /// A send is over: as much was taken as there was room for, or less, or nothing.
    fn sent<O: Operators>(&mut self, index: usize, operators: &mut O) {
        let room = self.sockets[index].link.room();
        let (now, calm) = (self.clock.micros(), self.calm);
        let rng = &mut self.rng;
        let socket = &mut self.sockets[index];
        let Some(sending) = socket.sending.take() else { return };
        let link = socket.link.clone();
        sending.check(&link);
        #[cfg(feature = "zerocopy")]
        if sending.is_without_copy() && rng.one_in(8) {
            let errno = rng.pick(&[libc::ENOBUFS, libc::ENOMEM, libc::EOPNOTSUPP, libc::EINVAL]);
            let result = Err(io::Error::from_raw_os_error(errno));
            assert_eq!(operators.zerocopy_ack(socket.token, result), Next::More);
            self.sockets[index].ask = true;
            return;
        }
        let mut state = link.state();
        let result = if let Some(errno) = state.reset {
            Err(io::Error::from_raw_os_error(rng.pick(&[libc::EPIPE, errno])))
        } else if socket.closing && rng.one_in(3) {
            Err(io::Error::from_raw_os_error(libc::EPIPE))
        } else if room == 0 || rng.one_in(8) {
            Err(io::ErrorKind::WouldBlock.into())
        } else if link.faulty && !calm && !sending.is_without_copy() && rng.one_in(40) {
            Err(io::Error::from_raw_os_error(rng.pick(&ERRNOS)))
        } else {
            Ok(some(rng, sending.bytes.min(room)))
        };
        self.stats.sends += 1;
        match &result {
            Ok(n) => {
                state.sent += *n as u64;
                state.moved(now);
                self.stats.sent_bytes += *n as u64;
                socket.blocked = room == *n as u64;
            }
            Err(error) => match error.raw_os_error() {
                Some(errno) => {
                    state.send_refused = true;
                    if errno == libc::ENOMEM {
                        // The socket lives, and its receiving side would never tell.
                        state.fail(errno);
                    } else {
                        state.send_failed.get_or_insert(errno);
                    }
                }
                None => socket.blocked = true,
            },
        }
        drop(state);
        #[cfg(feature = "zerocopy")]
        let next = if sending.without_copy {
            self.taken_without_copy(index, sending, result, operators)
        } else {
            operators.output_ack(socket.token, result)
        };
        #[cfg(not(feature = "zerocopy"))]
        let next = operators.output_ack(socket.token, result);
        // Of what is fresh it has been told, or will be.
        let asks = self.sockets[index].told || self.rng.one_in(2);
        if next == Next::More || (next == Next::Fresh && asks) {
            self.sockets[index].ask = true;
        }
    }

    #[cfg(feature = "zerocopy")]
    fn taken_without_copy<O: Operators>(
        &mut self,
        index: usize,
        mut sent: Sending,
        result: io::Result<usize>,
        operators: &mut O,
    ) -> Next {
        let socket = &mut self.sockets[index];
        if let Ok(n) = result {
            sent.truncate(n);
            socket.link.state().pinned += 1;
            let (token, link, number) = (socket.token, socket.link.clone(), socket.zero_copies);
            let at = self.clock.micros() + self.rng.span();
            self.zero_copies.push(ZeroCopy { token, link, number, sent, at });
            socket.zero_copies += 1;
        }
        operators.zerocopy_ack(socket.token, result)
    }

    /// Gives notice of some of the sends that are due, in any order, or of several in a row at once. False if there are
    /// none.
    #[cfg(feature = "zerocopy")]
    fn give_notice<O: Operators>(&mut self, now: Micros, operators: &mut O) -> bool {
        let mut any = false;
        while let Some(index) = self.zero_copies.iter().position(|send| send.at <= now) {
            any = true;
            if self.rng.one_in(3) {
                break;
            }
            let first = self.zero_copies.swap_remove(index);
            first.sent.check(&first.link);
            let (token, mut last) = (first.token, first.number);
            let mut done = 1;
            while self.rng.one_in(2) {
                let next = |send: &ZeroCopy| send.token == token && send.number == last + 1;
                let Some(index) = self.zero_copies.iter().position(next) else { break };
                let send = self.zero_copies.swap_remove(index);
                send.sent.check(&send.link);
                (last, done) = (last + 1, done + 1);
            }
            note!("{now} link {}: notice {}..={last}", first.link.id, first.number);
            first.link.state().pinned -= done;
            operators.zerocopy_notice(token, first.number, last, self.rng.one_in(20));
        }
        any
    }

    fn connected<O: Operators>(&mut self, index: usize, operators: &mut O) {
        let now = self.clock.micros();
        let socket = &mut self.sockets[index];
        let mut state = socket.link.state();
        let Some(connect) = state.connect.take() else { return };
        state.connected_at = now;
        state.count(now);
        if let Some(errno) = connect.errno {
            socket.ended = true;
            state.fail(errno);
            state.reset = Some(errno);
        }
        drop(state);
        let result = connect.errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
        operators.connected(socket.token, result);
    }

    fn release<O: Operators>(&mut self, socket: Socket, operators: &mut O) {
        socket.link.state().released = true;
        self.released.insert(socket.token);
        // SAFETY: nothing of it is in flight.
        unsafe { operators.released(socket.token) };
    }
}

impl Poll for SimEngine {
    unsafe fn register<O: Operators>(
        &mut self,
        token: Token,
        _fd: RawFd,
        kind: Kind,
        _operators: &mut O,
    ) -> io::Result<()> {
        let (link, errno) = self.next.take().expect("a link for the registration");
        if let Some(errno) = errno {
            self.released.insert(token);
            return Err(io::Error::from_raw_os_error(errno));
        }
        assert_eq!(link.state().connect.is_some(), kind == Kind::Connecting);
        assert!(!self.released.contains(&token), "a token is used again");
        self.sockets.push(Socket {
            token,
            link,
            stopped: false,
            ended: false,
            lent: None,
            lends_early: self.rng.one_in(2),
            blocked: false,
            ask: false,
            told: false,
            sending: None,
            closing: false,
            #[cfg(feature = "zerocopy")]
            zero_copies: 0,
            receive_at: 0,
            kept: Kept::No,
            due: false,
            send_at: 0,
            release_at: 0,
        });
        Ok(())
    }

    fn pending(&mut self, token: Token) -> Pending {
        let (now, drains) = (self.clock.micros(), self.drains);
        let Some(socket) = self.open(token) else { return Pending::default() };
        let link = socket.link.clone();
        link.run_peer(now);
        let mut room = link.room() > 0 || socket.kept == Kept::Taken;
        let mut state = link.state();
        if let Some(connect) = &state.connect {
            return Pending { room: connect.at <= now, ..Pending::default() };
        }
        if drains {
            state.due = state.arrived;
        }
        room |= state.reset.is_some();
        let pending = Pending {
            bytes: (state.arrived - state.delivered) as usize,
            ended: !socket.ended && (state.fin || state.reset.is_some()),
            room,
        };
        if room {
            state.told_of_room = now;
        }
        note!("{now} link {}: {pending:?}", link.id);
        if pending.bytes > 0 || pending.ended {
            mark!("asked for what was not harvested");
            state.told = now;
            // What is reported is told soon.
            socket.receive_at = socket.receive_at.min(now);
        }
        pending
    }

    fn receive<O: Operators>(&mut self, token: Token, _operators: &mut O) {
        assert!(!self.released.contains(&token), "a receive after the release");
        if let Some(socket) = self.open(token) {
            socket.stopped = false;
        }
    }

    fn send<O: Operators>(&mut self, token: Token, operators: &mut O) {
        // A flush may be left in the mailbox, and be applied when its connection is gone.
        let now = self.rng.one_in(2);
        let Some(socket) = self.open(token) else { return };
        socket.due = true;
        if socket.sending.is_some() || socket.blocked {
            socket.told = true;
            return;
        }
        socket.ask = true;
        let at = self.sockets.iter().position(|socket| socket.token == token);
        // On a socket that is connecting, a send waits.
        if let Some(index) = at.filter(|_| now) {
            self.ask(index, operators);
        }
    }

    fn watch_room(&mut self, _token: Token) {
        unreachable!("nothing is watched here");
    }

    fn deregister<O: Operators>(&mut self, token: Token, how: Deregister, operators: &mut O) {
        assert!(!self.released.contains(&token), "deregistered after the release");
        let now = self.clock.micros();
        let delays: [Micros; 3] = std::array::from_fn(|_| self.rng.span());
        let at_once = self.rng.one_in(2);
        let by_force = self.by_force;
        let index = self.sockets.iter().position(|socket| socket.token == token);
        let Some(index) = index else { panic!("deregistered, and never registered") };
        let socket = &mut self.sockets[index];
        note!("{now} link {}: deregister {how:?}", socket.link.id);
        socket.link.deregistered(how, by_force, now);
        socket.closing = true;
        socket.due = true;
        if at_once {
            if socket.is_idle() {
                let socket = self.sockets.swap_remove(index);
                self.release(socket, operators);
            }
            return;
        }
        [socket.receive_at, socket.send_at, socket.release_at] = delays.map(|delay| now + delay);
    }

    fn wait<O: Operators>(
        &mut self,
        timeout: Option<Duration>,
        operators: &mut O,
    ) -> io::Result<()> {
        self.stats.waits += 1;
        self.at_rest = false;
        let kept = self.take_queued();
        operators.awake();
        // Time passes between two turns, too.
        self.clock.advance_to(self.clock.micros() + self.rng.pick(&[0, 0, 3, 400, 1_100]));
        if !self.rng.one_in(40) {
            self.work(timeout, operators);
        }
        if !self.at_rest {
            for token in kept {
                let index = self.sockets.iter().position(|one| one.token == token);
                if let Some(index) = index.filter(|index| self.sockets[*index].kept == Kept::Taken)
                {
                    self.acknowledge(index, operators);
                }
            }
        }
        Ok(())
    }

    fn has_more(&mut self) -> bool {
        !self.events(self.clock.micros()).is_empty()
    }

    fn waker(&self) -> Arc<dyn Notify> {
        self.waker.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new("simulation", "any order")
    }

    fn stats(&self) -> EngineStats {
        self.stats
    }
}

impl Socket {
    fn is_idle(&self) -> bool {
        self.lent.is_none() && self.sending.is_none()
    }
}

impl Lent {
    fn vectors(&self) -> &[iovec] {
        &self.vectors[..self.count]
    }

    fn len(&self) -> usize {
        self.vectors().iter().map(|vector| vector.iov_len).sum()
    }

    fn scribble(&self, with: u64) {
        for vector in self.vectors() {
            assert!(vector.iov_len > 0, "an empty vector");
            let n = vector.iov_len.min(SCRIBBLE_BYTES);
            let base = vector.iov_base.cast::<u8>();
            // SAFETY: the operators lend the vectors to be written, until the acknowledgement.
            unsafe {
                base.write_bytes(with as u8, n);
                base.add(vector.iov_len - n).write_bytes((with >> 8) as u8, n);
            }
        }
    }

    fn fill(&self, pattern: Pattern, mut offset: u64, n: usize) {
        let mut left = n;
        for vector in self.vectors() {
            let n = vector.iov_len.min(left);
            let bytes = pattern.bytes(offset, n);
            // SAFETY: as for `scribble`.
            unsafe { vector.iov_base.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), n) };
            offset += n as u64;
            left -= n;
        }
        assert_eq!(left, 0);
    }
}

impl Sending {
    /// Then an error of memory means something else.
    fn is_without_copy(&self) -> bool {
        #[cfg(feature = "zerocopy")]
        return self.without_copy;
        #[cfg(not(feature = "zerocopy"))]
        false
    }

    /// Only its first `n` bytes.
    #[cfg(feature = "zerocopy")]
    fn truncate(&mut self, n: usize) {
        let mut left = n;
        for vector in &mut self.vectors {
            vector.iov_len = vector.iov_len.min(left);
            left -= vector.iov_len;
        }
        self.vectors.retain(|vector| vector.iov_len > 0);
        self.bytes = n as u64;
    }

    fn check(&self, link: &Link) {
        let mut offset = self.offset;
        for vector in &self.vectors {
            assert!(vector.iov_len > 0, "an empty vector");
            // SAFETY: the operators keep the vectors valid until the acknowledgement.
            let bytes =
                unsafe { std::slice::from_raw_parts(vector.iov_base.cast(), vector.iov_len) };
            link.check_sent(offset, bytes);
            offset += bytes.len() as u64;
        }
        assert_eq!(offset, self.offset + self.bytes, "vectors and bytes disagree");
    }
}

/// Some of what there is: one, all, or in between.
fn some(rng: &mut Rng, most: u64) -> usize {
    let n = match rng.below(4) {
        0 => 1,
        1 => rng.within(1, most),
        _ => most,
    };
    n as usize
}
