//! The world around one connection: its users, its poller and its peer, as far as they matter to it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::Wake;
use std::time::{Duration, Instant};

use crate::buffer::{Chain, LinkBuffer};
use crate::clock::Clock;
use crate::connection::lifecycle::{Lifecycle, Output};
use crate::connection::limits::Limits;
use crate::poll::Deregister;
use crate::timer::Tick;

/// The watermarks for flushing, in bytes.
pub(super) const HIGH_LOW: (usize, usize) = (1, 0);
/// The watermark for receiving, in bytes.
pub(super) const INPUT_HIGH: usize = 2;
/// Every timeout, in milliseconds.
pub(super) const TIMEOUT: Duration = Duration::from_millis(5);
/// What a step of time takes, in milliseconds: longer than every timeout, and not late.
pub(super) const STEP: Tick = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
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
    /// Something has come, and the engine asks where to put it: what then stops it is not said again.
    Asks,
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

pub(super) const STEPS: [Step; 36] = [
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
    Step::Asks,
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

#[derive(Debug, Default)]
pub(super) struct Hands(pub(super) AtomicU64);

impl Clock for Hands {
    fn now(&self) -> Tick {
        self.0.load(Relaxed)
    }

    fn tick_of(&self, _: Instant) -> Tick {
        self.now()
    }
}

#[derive(Default)]
pub(super) struct Bell(AtomicU32);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Whoever waits: what for, and the bell that says to look again.
#[derive(Default)]
pub(super) struct Waiter {
    pub(super) waits: Option<Step>,
    pub(super) bell: Arc<Bell>,
}

impl Waiter {
    pub(super) fn is_called(&self) -> bool {
        self.bell.0.load(Relaxed) > 0
    }
}

pub(super) struct World {
    pub(super) life: Lifecycle,
    pub(super) clock: Hands,

    // The users.
    pub(super) reader: Waiter,
    pub(super) writer: Waiter,
    pub(super) buffer: LinkBuffer,
    pub(super) staged: LinkBuffer,
    pub(super) has_reader: bool,
    pub(super) has_writer: bool,
    /// Bytes staged, flushed and read, each with its own value.
    pub(super) written: u8,
    pub(super) flushed: u8,
    pub(super) read: u8,
    /// Closers given, and how often they were called.
    pub(super) closers: u32,
    pub(super) called: Arc<AtomicU32>,
    /// The user was told of the end of the stream, with nothing missing.
    pub(super) saw_end: bool,

    // The poller and its engine.
    pub(super) told: bool,
    pub(super) must_send: bool,
    pub(super) receives: bool,
    pub(super) closing: bool,
    pub(super) open: i32,
    pub(super) sending: Chain,
    pub(super) how: Option<Deregister>,
    pub(super) released: bool,

    // The peer.
    pub(super) sent: u8,
    pub(super) got: u8,
    pub(super) peer_ended: bool,
    pub(super) saw_fin: bool,
    pub(super) broken: bool,
    pub(super) refuses: bool,
    /// A byte of its has arrived that the engine has not delivered.
    pub(super) arrived: bool,
}

impl World {
    pub(super) fn new(connecting: bool) -> World {
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

    pub(super) fn is_connecting(&self) -> bool {
        self.life.output == Output::Connecting
    }

    /// Whether the engine has something to send, or asks whether there is.
    pub(super) fn is_sending(&self) -> bool {
        self.must_send && self.is_registered() && !self.is_connecting()
    }

    /// Whether the engine watches the socket.
    pub(super) fn is_registered(&self) -> bool {
        self.how.is_none()
    }

    /// All that makes this state another one than others.
    pub(super) fn fingerprint(&self) -> String {
        let mut text = String::new();
        let life = &self.life;
        let _ = write!(
            text,
            "{:?}",
            (
                (life.inbox.len(), life.need, life.reader.is_some(), life.reading, life.input),
                (life.peer_done, life.has_part, life.stopped, life.paused, life.serving),
                (life.draining, life.expected, life.outbox.len(), life.unsent, life.writing),
                (life.writer.is_some(), life.wake_at, life.output, life.notes, life.send_posted),
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
