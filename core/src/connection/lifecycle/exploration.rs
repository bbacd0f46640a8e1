//! Every state that a handful of steps can reach, whoever makes them and in whatever order, and what holds in each of them;
//! and from each of them, once everybody does what is left to do, the end.
//!
//! The users are whoever holds the halves. The poller and its engine are played as the driver plays them: they do only what
//! they were told to.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::*;
use crate::buffer::LinkBuffer;
use crate::clock::Clock;
use crate::connection::effects::{Effects, Offer};
use crate::connection::wait::Owner;
use crate::poll::{Deregister, Next, Outputs, Pending};

/// The watermarks for flushing, in bytes.
const HIGH_LOW: (usize, usize) = (1, 0);
/// The watermark for receiving, in bytes.
const INPUT_HIGH: usize = 2;
/// Every timeout, in milliseconds.
const TIMEOUT: Duration = Duration::from_millis(5);
/// What a step of time takes, in milliseconds: longer than every timeout, and not late.
const STEP: Tick = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    // Of the users.
    Read(usize),
    Request,
    EndRead,
    Stage,
    Flush,
    Finish,
    FinishStaged,
    Close,
    CloseStaged,
    DropReader,
    DropWriter,
    Abort,
    Detach,
    Pause,
    Resume,
    OnClose,
    ReadTimeout,
    WriteTimeout,
    IdleTimeout,
    // Of the poller.
    Look,
    Sends(usize),
    Connects,
    Delivers,
    PeerEnds,
    Breaks,
    PeerTakesNoMore,
    /// Time passes. `true`: a byte has arrived before, which the engine delivers later.
    Time(bool),
    Drain,
    WindUp,
    Force,
    Released,
}

const STEPS: [Step; 35] = [
    Step::Read(1),
    Step::Read(3),
    Step::Request,
    Step::EndRead,
    Step::Stage,
    Step::Flush,
    Step::Finish,
    Step::FinishStaged,
    Step::Close,
    Step::CloseStaged,
    Step::DropReader,
    Step::DropWriter,
    Step::Abort,
    Step::Detach,
    Step::Pause,
    Step::Resume,
    Step::OnClose,
    Step::ReadTimeout,
    Step::WriteTimeout,
    Step::IdleTimeout,
    Step::Look,
    Step::Sends(0),
    Step::Sends(1),
    Step::Sends(9),
    Step::Connects,
    Step::Delivers,
    Step::PeerEnds,
    Step::Breaks,
    Step::PeerTakesNoMore,
    Step::Time(false),
    Step::Time(true),
    Step::Drain,
    Step::WindUp,
    Step::Force,
    Step::Released,
];

/// Steps from the beginning, with two beginnings.
const DEPTH: usize = if cfg!(miri) { 1 } else { 5 };

#[derive(Debug, Default)]
struct Hands(AtomicU64);

impl Clock for Hands {
    fn now(&self) -> Tick {
        self.0.load(Relaxed)
    }

    fn tick_of(&self, _: Instant) -> Tick {
        self.now()
    }
}

#[derive(Default)]
struct Bell(AtomicU32);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Whoever waits: what for, and the bell that says to look again.
#[derive(Default)]
struct Waiter {
    waits: Option<Step>,
    bell: Arc<Bell>,
}

impl Waiter {
    fn is_called(&self) -> bool {
        self.bell.0.load(Relaxed) > 0
    }
}

struct World {
    life: Lifecycle,
    clock: Hands,

    // The users.
    reader: Waiter,
    writer: Waiter,
    buffer: LinkBuffer,
    staged: LinkBuffer,
    has_reader: bool,
    has_writer: bool,
    /// Bytes staged, flushed and read, each with its own value.
    written: u8,
    flushed: u8,
    read: u8,
    /// Closers given, and how often they were called.
    closers: u32,
    called: Arc<AtomicU32>,
    /// The user was told of the end of the stream, with nothing missing.
    saw_end: bool,

    // The poller and its engine.
    told: bool,
    must_send: bool,
    receives: bool,
    closing: bool,
    open: i32,
    sending: Chain,
    how: Option<Deregister>,
    released: bool,

    // The peer.
    sent: u8,
    got: u8,
    peer_ended: bool,
    saw_fin: bool,
    broken: bool,
    refuses: bool,
    /// A byte of its has arrived that the engine has not delivered.
    arrived: bool,
}

impl World {
    fn new(connecting: bool) -> World {
        let limits = Limits::default();
        World {
            life: Lifecycle::new(&limits, connecting, 0),
            clock: Hands::default(),
            reader: Waiter::default(),
            writer: Waiter::default(),
            buffer: LinkBuffer::new(),
            staged: LinkBuffer::new(),
            has_reader: true,
            has_writer: true,
            written: 0,
            flushed: 0,
            read: 0,
            closers: 0,
            called: Arc::default(),
            saw_end: false,
            told: false,
            must_send: false,
            receives: !connecting,
            closing: false,
            open: 1,
            sending: Chain::new(),
            how: None,
            released: false,
            sent: 0,
            got: 0,
            peer_ended: false,
            saw_fin: false,
            broken: false,
            refuses: false,
            arrived: false,
        }
    }

    fn is_connecting(&self) -> bool {
        self.life.output == Output::Connecting
    }

    /// Whether the engine has something to send, or asks whether there is.
    fn is_sending(&self) -> bool {
        self.must_send && self.is_registered() && !self.is_connecting()
    }

    /// Whether the engine watches the socket.
    fn is_registered(&self) -> bool {
        self.how.is_none()
    }

    /// Makes a step. False if it cannot be made here.
    fn make(&mut self, step: Step) -> bool {
        let may_read = self.has_reader && self.reader.waits.is_none_or(|waits| waits == step);
        match step {
            Step::Read(_) | Step::Request | Step::Detach if may_read => self.poll_reader(step),
            Step::EndRead if self.reader.waits.is_some_and(|waits| waits != Step::Detach) => {
                self.reader = Waiter::default();
                drop(self.life.end_reading(&self.clock));
            }
            Step::Stage if self.has_writer && self.written < 3 => {
                self.staged.write(&[self.written]).unwrap();
                self.written += 1;
            }
            Step::Flush if self.has_writer => self.poll_writer(),
            Step::Finish | Step::FinishStaged if self.has_writer && self.writer.waits.is_none() => {
                let staged = (step == Step::FinishStaged).then_some(&mut self.staged);
                let send = self.life.finish(staged, &self.clock);
                self.must_send |= send.is_some();
                self.note_flushed();
            }
            Step::Close | Step::CloseStaged if self.has_writer => {
                let staged = (step == Step::CloseStaged).then_some(&mut self.staged);
                let effects = self.life.close(staged, &self.clock);
                self.note_flushed();
                effects.perform();
            }
            Step::DropReader if self.has_reader => self.drop_half(Half::Reader),
            Step::DropWriter if self.has_writer => self.drop_half(Half::Writer),
            Step::Abort => self.life.abort(&self.clock).perform(),
            Step::Pause => self.life.pause(&self.clock),
            Step::Resume => self.life.resume(&self.clock),
            Step::OnClose if self.closers < 2 => {
                self.closers += 1;
                let called = self.called.clone();
                let closer = Box::new(move || {
                    called.fetch_add(1, Relaxed);
                });
                if let Some(closer) = self.life.on_close(closer) {
                    closer();
                }
            }
            Step::ReadTimeout => self.limit(Limit::ReadTimeout(Some(TIMEOUT))),
            Step::WriteTimeout => self.limit(Limit::WriteTimeout(Some(TIMEOUT))),
            Step::IdleTimeout => self.limit(Limit::IdleTimeout(Some(TIMEOUT))),

            Step::Look if self.told => self.look(),
            Step::Sends(n) if self.is_sending() => self.send(n),
            Step::Connects if self.is_connecting() && self.is_registered() => {
                self.receives = true;
                let (effects, send) = self.life.connected(&self.clock);
                self.must_send |= send.is_some();
                effects.perform();
            }
            Step::Delivers if self.sent < 4 && !self.peer_ended && !self.arrived => {
                if !self.asks_for_input() {
                    return false;
                }
                self.deliver();
            }
            Step::PeerEnds if !self.peer_ended && !self.arrived && self.asks_for_input() => {
                self.peer_ended = true;
                self.receives = false;
                let effects = self.life.end_input(&self.clock);
                effects.perform();
                self.end_turn();
            }
            Step::Breaks if !self.broken && self.is_registered() => {
                self.broken = true;
                self.receives = false;
                let mut effects = Effects::default();
                self.sending = Chain::new();
                self.life.fail(libc::ECONNRESET, &mut effects, &self.clock);
                effects.perform();
                self.end_turn();
            }
            Step::PeerTakesNoMore if self.is_sending() && !self.refuses => {
                self.refuses = true;
                let mut effects = Effects::default();
                self.sending = Chain::new();
                self.life.fail_output(libc::EPIPE, &mut effects, &self.clock);
                effects.perform();
                self.end_turn();
            }
            Step::Time(arrives) => {
                if arrives && (self.arrived || self.sent == 4 || !self.asks_for_input()) {
                    return false;
                }
                self.arrived |= arrives;
                self.clock.0.fetch_add(STEP, Relaxed);
                self.look_at_deadlines();
            }
            Step::Drain if self.life.phase == Phase::Open && !self.life.draining => {
                let effects = self.life.drain(usize::from(self.arrived));
                effects.perform();
            }
            Step::WindUp if self.is_registered() => {
                let (effects, goes) = self.life.wind_up(&self.clock);
                effects.perform();
                if goes {
                    self.begin_closing();
                } else {
                    self.deregister(Reason::Forced);
                }
            }
            Step::Force if self.is_registered() => self.deregister(Reason::Forced),
            Step::Released if !self.is_registered() && !self.released => {
                self.released = true;
                let effects = self.life.released(&self.clock);
                effects.perform();
            }
            _ => return false,
        }
        // Closed before it was connected: nothing is sent, and nobody is there to end.
        self.broken |= self.life.output == Output::Failed(libc::ECANCELED);
        self.told |= self.life.must_tell();
        true
    }

    // What the users do.

    fn poll_reader(&mut self, step: Step) {
        self.reader.bell = Arc::default();
        let waker = Waker::from(self.reader.bell.clone());
        let mut offer = Offer::new(&waker, true);
        let World { life, buffer, clock, .. } = self;
        let polled = match step {
            Step::Detach => life.detach(buffer, &mut offer, clock),
            Step::Request => life.fill(buffer, 1, Wanted::Request, &mut offer, clock),
            Step::Read(n) => life.fill(buffer, n, Wanted::Bytes(Owner::Future), &mut offer, clock),
            _ => unreachable!(),
        };
        assert!(!polled.retry, "a clone was there");
        self.reader.waits = polled.result.is_pending().then_some(step);
        if polled.result.is_ready() {
            let bytes = self.buffer.next(self.buffer.len()).unwrap();
            for &byte in &bytes[..] {
                assert_eq!(
                    byte, self.read,
                    "bytes that were read are in the order in which they were sent"
                );
                self.read += 1;
            }
        }
        if polled.result == Poll::Ready(Err(Refusal::Ended)) && matches!(step, Step::Read(_)) {
            assert!(self.peer_ended, "the end of the stream is the peer's");
            assert_eq!(self.read, self.sent, "and comes behind all bytes");
            self.saw_end = true;
        }
        if polled.result == Poll::Ready(Ok(())) {
            assert!(!self.saw_end || step == Step::Detach, "nothing comes behind the end");
        }
    }

    fn poll_writer(&mut self) {
        self.writer.bell = Arc::default();
        let waker = Waker::from(self.writer.bell.clone());
        let mut offer = Offer::new(&waker, true);
        let World { life, staged, clock, .. } = self;
        let polled = match life.output {
            Output::Connecting => life.poll_connected(Owner::Future, &mut offer, clock),
            _ => life.flush(staged, HIGH_LOW, Owner::Future, &mut offer, clock),
        };
        assert!(!polled.retry, "a clone was there");
        self.must_send |= polled.send.is_some();
        self.writer.waits = polled.result.is_pending().then_some(Step::Flush);
        self.note_flushed();
    }

    /// What is not staged any more was flushed.
    fn note_flushed(&mut self) {
        let staged = self.staged.len() + self.staged.reserved_len();
        self.flushed = self.written - staged as u8;
    }

    fn drop_half(&mut self, half: Half) {
        match half {
            Half::Reader => {
                self.has_reader = false;
                self.reader = Waiter::default();
            }
            Half::Writer => {
                self.has_writer = false;
                self.writer = Waiter::default();
            }
        }
        let effects = self.life.half_gone(half, &self.clock);
        effects.perform();
    }

    fn limit(&mut self, limit: Limit) {
        let effects = self.life.limit(limit, self.clock.now());
        effects.perform();
    }

    // What the poller does.

    fn look(&mut self) {
        self.told = false;
        let todo = self.life.take_todo();
        if !self.is_registered() {
            return;
        }
        if todo.has(Todo::ABORT) {
            return self.deregister(Reason::Aborted);
        }
        if todo.has(Todo::DETACH) && self.life.leave() {
            self.open -= i32::from(self.life.uncount());
            self.deregister(Reason::Detached);
        }
        if todo.has(Todo::CLOSE) {
            self.begin_closing();
        }
        if todo.has(Todo::RECEIVE) && self.life.receives().is_some() && !self.peer_ended {
            self.receives = !self.is_connecting();
        }
        if todo.has(Todo::ARM) {
            self.look_at_deadlines();
        }
    }

    fn begin_closing(&mut self) {
        if self.life.phase() != Phase::Sending || mem::replace(&mut self.closing, true) {
            return;
        }
        self.open -= i32::from(self.life.uncount());
        self.must_send = true;
        self.receives |= !self.peer_ended && !self.broken;
        self.end_turn();
    }

    fn end_turn(&mut self) {
        if self.closing && self.is_registered() && self.life.go_on_closing(false) == Closing::Ends {
            self.deregister(Reason::Closed);
        }
    }

    fn send(&mut self, n: usize) {
        self.must_send = false;
        match self.life.take_output(&mut self.sending) {
            Ok(_) => {
                let n = n.min(self.sending.len());
                self.take(n);
                let now = self.clock.now();
                let moved = self.life.sent(n, &mut self.sending, || now);
                self.must_send = moved.next == Next::More;
                crate::connection::wake(moved.waker);
            }
            Err(Outputs::Finish) => {
                assert_eq!(self.got, self.flushed, "the FIN comes behind all that was flushed");
                self.saw_fin = true;
            }
            Err(_) => {}
        }
        self.end_turn();
    }

    /// The peer gets `n` bytes of what is being sent.
    fn take(&mut self, n: usize) {
        let mut bytes = self.sending.iter().flat_map(|slice| slice.to_vec());
        for _ in 0..n {
            assert_eq!(
                bytes.next(),
                Some(self.got),
                "the peer gets what was flushed, in its order"
            );
            self.got += 1;
        }
        drop(bytes);
        self.sending.advance(n);
    }

    fn asks_for_input(&mut self) -> bool {
        if !self.is_registered() || self.broken {
            return false;
        }
        self.receives &= self.life.receives().is_some();
        self.receives
    }

    fn deliver(&mut self) {
        let byte = self.sent;
        self.sent += 1;
        let Moved { waker, next, .. } = self.life.deliver(INPUT_HIGH, &self.clock, |inbox, _| {
            let mut bytes = LinkBuffer::new();
            bytes.write(&[byte]).unwrap();
            bytes.drain_into(inbox);
        });
        crate::connection::wake(waker);
        self.receives = next == Next::More;
    }

    fn look_at_deadlines(&mut self) {
        if !self.is_registered() {
            return;
        }
        let now = self.clock.now();
        let mut expired = self.life.expire(now, None, false);
        if let Expired::Ask = expired {
            let pending = Pending { bytes: usize::from(self.arrived), ended: false, room: false };
            expired = self.life.expire(now, Some(pending), false);
        }
        match expired {
            Expired::Looked { effects, idle, .. } => {
                if idle {
                    assert!(!self.arrived, "whoever has sent is not idle");
                    self.deregister(Reason::Idle);
                }
                effects.perform();
            }
            // Its timer ends it, by force.
            Expired::Closing if !self.closing => {}
            Expired::Closing => match self.life.phase() {
                Phase::Sending => self.deregister(Reason::Unsent),
                Phase::Lingering => self.deregister(Reason::Closed),
                _ => {}
            },
            Expired::Ask => panic!("was told"),
        }
    }

    fn deregister(&mut self, reason: Reason) {
        let unsent = self.flushed > self.got && !matches!(self.life.output, Output::Failed(_));
        let within = self.life.phase == Phase::Open
            && self.life.output == Output::Open
            && self.life.is_within_request();
        let Some(end) = self.life.deregister(reason, false, &self.clock) else { return };
        self.open -= i32::from(end.was_open);
        self.how = Some(end.how);
        match end.how {
            Deregister::Close | Deregister::Shutdown => {
                assert!(
                    !unsent && !within,
                    "what is cut short does not end with a FIN: {reason:?}"
                );
            }
            Deregister::Leave => assert_eq!(reason, Reason::Detached),
            Deregister::Abort => {}
        }
        end.effects.perform();
    }

    // What holds.

    fn check(&self) {
        let life = &self.life;
        assert!(
            life.todo.is_empty() || self.told,
            "the poller knows that there is something to do"
        );
        assert!((0..=1).contains(&self.open), "it is counted once");
        assert_eq!(self.open == 1, life.counted);
        let calls = self.called.load(Relaxed);
        assert!(calls <= self.closers, "no closer is called twice");
        if life.phase == Phase::Open && self.is_registered() {
            let armed =
                life.todo.has(Todo::ARM) || life.armed <= life.due().max(self.clock.now() + 1);
            assert!(armed, "there is a timer for each deadline");
        }
        if life.unsent > 0 && self.is_registered() && !self.is_connecting() {
            let knows = self.must_send || (life.todo.has(Todo::CLOSE) && !self.closing);
            assert!(knows, "the engine knows that there is something to send");
        }
        for (waiter, kept) in [(&self.reader, &life.reader), (&self.writer, &life.writer)] {
            let waits = waiter.waits.is_some() && !waiter.is_called();
            assert!(!waits || kept.is_some(), "whoever waits is waited for");
        }
    }

    /// Everybody does what is left to do, and the peer ends.
    fn conclude(&mut self) {
        for _ in 0..40 {
            let before = self.fingerprint();
            self.make(Step::Resume);
            for waits in [self.reader.waits, self.writer.waits].into_iter().flatten() {
                let waiter = if waits == Step::Flush { &self.writer } else { &self.reader };
                if waiter.is_called() {
                    self.make(waits);
                }
            }
            self.make(Step::Look);
            self.make(Step::Connects);
            self.make(Step::Sends(1));
            if self.arrived && self.asks_for_input() {
                self.arrived = false;
                self.deliver();
            }
            if self.has_reader && self.reader.waits.is_none() && self.life.input == Input::Open {
                // Somebody reads on, so that the end can come.
                self.make(Step::Read(1));
            }
            self.make(Step::PeerEnds);
            self.make(Step::Released);
            self.check();
            if before == self.fingerprint() {
                break;
            }
        }
        assert!(self.reader.waits.is_none(), "the reader's wait has ended");
        assert!(self.writer.waits.is_none(), "the writer's wait has ended");
        let reset = self.broken || self.refuses || self.how == Some(Deregister::Abort);
        assert!(
            reset || self.how == Some(Deregister::Leave) || self.got == self.flushed,
            "all is sent"
        );
        for half in [Step::DropReader, Step::DropWriter] {
            self.make(half);
        }
        for step in [Step::Look, Step::Sends(9), Step::Sends(9), Step::PeerEnds, Step::Released] {
            self.make(step);
            self.check();
        }
        assert!(matches!(self.life.phase, Phase::Released { .. }), "it has come to its end");
        assert_eq!(self.open, 0);
        assert_eq!(self.called.load(Relaxed), self.closers, "each closer is called once");
        assert!(self.life.inbox.is_empty() && self.life.outbox.is_empty(), "nothing is kept");
        assert!(self.life.reader.is_none() && self.life.writer.is_none(), "nobody is kept");
    }

    /// All that makes this state another one than others.
    fn fingerprint(&self) -> String {
        let mut text = String::new();
        let life = &self.life;
        let _ = write!(
            text,
            "{:?}",
            (
                (life.inbox.len(), life.need, life.reader.is_some(), life.reading, life.input),
                (life.peer_done, life.has_part, life.stopped, life.paused, life.serving),
                (life.draining, life.expected, life.outbox.len(), life.unsent, life.writing),
                (life.writer.is_some(), life.wake_at, life.output, life.refusal, life.send_posted),
                (life.finish_connected, life.cut, life.phase, life.todo, life.told, life.counted),
                (life.reader_gone, life.writer_gone, life.detaching, life.idle, life.armed),
                (life.late, life.late_send, self.clock.now(), self.buffer.len(), self.staged.len()),
                (self.reader.waits, self.reader.is_called(), self.writer.waits),
                (self.writer.is_called(), self.written, self.flushed, self.read, self.closers),
                (self.called.load(Relaxed), self.saw_end, self.told, self.must_send, self.receives),
                (self.closing, self.open, self.sending.len(), self.how, self.released),
                (
                    (self.sent, self.got, self.peer_ended, self.saw_fin),
                    self.broken,
                    self.refuses,
                    self.arrived
                ),
            )
        );
        text
    }
}

/// The world after these steps; none if the last cannot be made.
fn after(connecting: bool, steps: &[Step]) -> Option<World> {
    let mut world = World::new(connecting);
    let mut made = true;
    for &step in steps {
        made = world.make(step);
    }
    made.then_some(world)
}

#[test]
fn whatever_happens_in_whichever_order_every_connection_comes_to_its_end() {
    for connecting in [false, true] {
        let mut seen = HashSet::new();
        let mut paths: Vec<Vec<Step>> = vec![Vec::new()];
        for _ in 0..DEPTH {
            let mut longer = Vec::new();
            for path in &paths {
                for step in STEPS {
                    let mut path = path.clone();
                    path.push(step);
                    let tried = std::panic::catch_unwind(|| {
                        let mut world = after(connecting, &path)?;
                        let state = world.fingerprint();
                        world.check();
                        world.conclude();
                        Some(state)
                    });
                    let Ok(state) = tried else {
                        panic!("connecting: {connecting}, steps: {path:?}");
                    };
                    if state.is_some_and(|state| seen.insert(state)) {
                        longer.push(path);
                    }
                }
            }
            paths = longer;
        }
        println!("connecting: {connecting}: {} states", seen.len());
    }
}
