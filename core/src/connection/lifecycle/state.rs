//! What a connection can be in.

/// An error of the kernel. It has less than 4,096 of them, and every connection has room for two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(u16);

impl Errno {
    pub(crate) fn new(errno: i32) -> Errno {
        Errno(errno.clamp(0, 4095) as u16)
    }

    pub(crate) fn get(self) -> i32 {
        self.0.into()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Input {
    #[default]
    Open,
    /// The peer sent its FIN.
    Ended,
    /// The kernel reported this errno, or the poller has ended.
    Failed(Errno),
    /// Closed by this side.
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Output {
    #[default]
    Open,
    /// The connect is under way.
    Connecting,
    /// No more comes; the FIN goes out behind what is queued.
    Finishing,
    /// The FIN is out.
    Finished,
    /// The kernel reported this errno.
    Failed(Errno),
}

/// Whether a server handles requests of this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Serving {
    /// None does, or not in this way.
    #[default]
    No,
    /// It waits for the next one.
    Between,
    /// Something may still have to be answered.
    Within,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Closed by this side: what was flushed is being sent.
    Sending,
    /// The FIN is out, or cannot be: waiting for the peer's.
    Lingering,
    /// To be given away when the kernel reads no more from its memory.
    Leaving,
    /// Given back to the engine, which has not released it yet.
    Deregistered {
        /// The socket lives on.
        leaves: bool,
    },
    /// The engine holds nothing of it any more.
    Released {
        /// And whoever waited for that has the socket.
        detached: bool,
    },
}

impl Phase {
    /// Whether the engine was given it back.
    #[inline]
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Phase::Deregistered { .. } | Phase::Released { .. })
    }
}

/// What is seldom so, in a byte, since every connection has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Notes(u8);

impl Notes {
    /// What the reader waits for does not fit into memory: it is told.
    pub(super) const NO_MEMORY: Notes = Notes(1);
    /// What is unsent takes memory that others need: whoever waits for room is told.
    pub(super) const NO_ROOM: Notes = Notes(2);
    /// Somebody was told that. When it is closed it has not long to send the rest.
    pub(super) const HURRIES: Notes = Notes(4);
    /// The poller has ended: nothing more can be written, and not because this side has finished.
    pub(super) const WOUND_UP: Notes = Notes(8);
    /// A byte has come.
    pub(super) const HAS_RECEIVED: Notes = Notes(16);
    /// The peer, or the kernel, has ended it before this side did.
    pub(super) const PEER_FIRST: Notes = Notes(32);
    /// To be idle is a way to end, also within a request.
    pub(super) const ENDS_WHEN_IDLE: Notes = Notes(64);

    pub(super) fn add(&mut self, what: Notes) {
        self.0 |= what.0;
    }

    pub(super) fn has(self, what: Notes) -> bool {
        self.0 & what.0 != 0
    }

    /// Whether it was there; it is not any more.
    pub(super) fn take(&mut self, what: Notes) -> bool {
        let had = self.has(what);
        self.0 &= !what.0;
        had
    }
}

/// What the poller is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Todo(u8);

impl Todo {
    pub(crate) const RECEIVE: Todo = Todo(1);
    pub(crate) const CLOSE: Todo = Todo(2);
    pub(crate) const ABORT: Todo = Todo(4);
    pub(crate) const DETACH: Todo = Todo(8);
    /// A deadline is earlier than the timer that is set.
    pub(crate) const ARM: Todo = Todo(16);

    pub(crate) fn add(&mut self, what: Todo) {
        self.0 |= what.0;
    }

    pub(crate) fn has(self, what: Todo) -> bool {
        self.0 & what.0 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}
