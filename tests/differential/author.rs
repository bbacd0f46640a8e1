//! The author of scripts: draws them from a seed, and foretells what must come of each step.
//!
//! A script is written move by move. Each leaves everything at rest, so that the next one begins from a state that
//! is known; what is said of races below holds because of how the moves are made, not by luck.
//!
//! - A read is given only bytes that the peer has been told to send. If it needs more, it waits until they are sent,
//!   or until something ends the wait; never both.
//! - A short timeout is set only while nothing comes that could end the wait first, and is taken back afterwards.
//! - What depends on how many bytes have been handed over (`more`, one `read`, a deadline in the past, the length of
//!   the buffer) is asked only after a `fill` of everything that was sent.
//! - The peer reads only what was flushed. A flush that may have to wait is awaited while the peer reads all of it,
//!   or, if the peer is not to read, is for more than the socket's buffers hold.
//! - The peer ends by force only when the user has read, or the kernel has received, everything it sent, and when the
//!   kernel has taken everything that the user flushed, or certainly never will.
//! - This side ends by force only when the peer has read everything.
//!
//! Two things are left that the contract allows to differ: see [`Outcome::Broken`] and [`Step::ReadCutOff`].

use std::io::ErrorKind;

use crate::script::{
    ControlOp, Leave, Outcome, PeerOp, Place, Planned, ReadOp, Script, Step, TIGHT_OUTPUT_BYTES,
    WriteOp, peers_bytes,
};
use crate::support::{Family, Random};

/// Bytes that fit into any socket's buffers, whatever pieces they come in.
pub(crate) const FITS_BYTES: u64 = 16 << 10;
/// More bytes than a tight connection's buffers hold.
pub(crate) const FLOOD_BYTES: usize = 1 << 20;
/// How long a timeout is that is to expire, in milliseconds.
pub(crate) const SHORT_MS: u64 = 2;
/// How long one is that is not.
pub(crate) const LONG_MS: u64 = 600_000;

pub(crate) const DEFAULT_OUTPUT_BYTES: u64 = 1 << 20;

pub(crate) const TIMED_OUT: Outcome = Outcome::Failed(ErrorKind::TimedOut, None);
pub(crate) const END: Outcome = Outcome::Failed(ErrorKind::UnexpectedEof, None);
pub(crate) const CLOSED: Outcome = Outcome::Failed(ErrorKind::NotConnected, None);
pub(crate) const ABORTED: Outcome =
    Outcome::Failed(ErrorKind::ConnectionAborted, Some(libc::ECONNABORTED));
pub(crate) const RESET: Outcome =
    Outcome::Failed(ErrorKind::ConnectionReset, Some(libc::ECONNRESET));
pub(crate) const PIPE: Outcome = Outcome::Failed(ErrorKind::BrokenPipe, Some(libc::EPIPE));
pub(crate) const IDLE: Outcome = Outcome::Failed(ErrorKind::TimedOut, Some(libc::ETIMEDOUT));

/// What reads find when they have read everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Open,
    /// The end of the stream; on the way out: it was finished.
    Ended,
    Failed(Outcome),
    /// The half was dropped.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Connect,
    Request,
    /// Between two requests, with so many bytes left.
    Between,
    Disconnect,
    /// No callbacks.
    Own,
}

/// The script that is being written, and the state that it has come to.
pub(crate) struct Author {
    pub(crate) seed: u64,
    pub(crate) random: Random,
    pub(crate) family: Family,
    pub(crate) place: Place,
    pub(crate) tight: bool,
    pub(crate) alone: bool,
    pub(crate) steps: Vec<Planned>,
    pub(crate) phase: Phase,

    /// Bytes that the peer was told to send.
    pub(crate) sent: u64,
    /// Of these, what the user has read.
    pub(crate) read: u64,
    /// Of these, what has certainly been handed over.
    pub(crate) settled: u64,
    /// What was read when the callback began.
    pub(crate) read_at_call: u64,
    pub(crate) input: Side,
    pub(crate) peer_finished: bool,
    /// A read is under way, or a write.
    pub(crate) reading: bool,
    pub(crate) writing: bool,

    pub(crate) staged: u64,
    pub(crate) flushed: u64,
    pub(crate) peer_read: u64,
    /// Bytes that the kernel may not have taken, at most.
    pub(crate) unsent: u64,
    pub(crate) output: Side,
}

impl Author {
    pub(crate) fn new(seed: u64, family: Family) -> Author {
        let mut random = Random::new(seed);
        let place = match random.between(0, 3) {
            0 | 1 => Place::Served,
            2 => Place::Dialed,
            _ => Place::Halves,
        };
        let tight = random.next() % 3 == 0;
        let alone = place == Place::Served && random.next() % 8 == 0;
        let phase = if place == Place::Served { Phase::Connect } else { Phase::Own };
        Author {
            seed,
            random,
            family,
            place,
            tight,
            alone,
            steps: Vec::new(),
            phase,
            sent: 0,
            read: 0,
            settled: 0,
            read_at_call: 0,
            input: Side::Open,
            peer_finished: false,
            reading: false,
            writing: false,
            staged: 0,
            flushed: 0,
            peer_read: 0,
            unsent: 0,
            output: Side::Open,
        }
    }

    pub(crate) fn write(mut self) -> Script {
        if self.phase == Phase::Connect {
            self.expect(Step::Called, Outcome::Called("prepare"));
            self.expect(Step::Called, Outcome::Called("connect"));
        }
        for _ in 0..self.random.between(2, 10) {
            self.any_move();
        }
        self.any_end();
        self.expect(Step::Over, Outcome::Value(1));
        let Author { seed, place, tight, alone, steps, .. } = self;
        Script { seed, place, tight, alone, steps }
    }
}

/// What the moves are made of.
impl Author {
    pub(crate) fn step(&mut self, step: Step) {
        self.steps.push(Planned { step, expected: None });
    }

    pub(crate) fn expect(&mut self, step: Step, outcome: Outcome) {
        self.steps.push(Planned { step, expected: Some(outcome) });
    }

    pub(crate) fn called(&mut self, name: &'static str) {
        self.expect(Step::Called, Outcome::Called(name));
        self.phase = if name == "request" { Phase::Request } else { Phase::Disconnect };
        self.read_at_call = self.read;
    }

    pub(crate) fn leave(&mut self, leave: Leave) {
        self.step(Step::Leave(leave));
    }

    pub(crate) fn send(&mut self, n: usize) {
        self.step(Step::Peer(PeerOp::Send(self.sent, n)));
        self.sent += n as u64;
    }

    pub(crate) fn unread(&self) -> usize {
        (self.sent - self.read) as usize
    }

    /// Waits until everything that was sent has been handed over.
    pub(crate) fn settle(&mut self) {
        let unread = self.unread();
        self.read_expecting(ReadOp::Fill(unread), unread);
        self.settled = self.sent;
    }

    pub(crate) fn begin_read(&mut self, op: ReadOp) {
        self.step(Step::Read(self.read, op));
    }

    pub(crate) fn expect_read(&mut self, op: ReadOp, outcome: Outcome) {
        self.begin_read(op);
        self.expect(Step::ReadDone, outcome);
    }

    /// A read that gets `n` bytes.
    pub(crate) fn read_expecting(&mut self, op: ReadOp, n: usize) {
        self.begin_read(op.clone());
        self.end_read(&op, n);
    }

    pub(crate) fn end_read(&mut self, op: &ReadOp, n: usize) {
        self.expect(Step::ReadDone, op.success(self.read, n));
        self.read_up_to(op.consumes(n));
    }

    pub(crate) fn read_up_to(&mut self, n: usize) {
        self.read += n as u64;
        self.settled = self.settled.max(self.read);
    }

    /// Some way to read exactly `n` bytes.
    pub(crate) fn read_op(&mut self, n: usize) -> ReadOp {
        match self.random.between(0, 8) {
            0 | 1 => ReadOp::Next(n),
            2 => ReadOp::Peek(n),
            3 => ReadOp::Skip(n),
            4 => ReadOp::SplitTo(n),
            5 if n == 1 => ReadOp::U8,
            5 if n == 4 => ReadOp::U32,
            5 => ReadOp::Fill(n),
            6 => ReadOp::ReadAll(n),
            _ => match self.delimiter_at(n - 1) {
                Some(delimiter) => {
                    ReadOp::Until { delimiter, max_bytes: n + self.random.between(0, 5) as usize }
                }
                None => ReadOp::Next(n),
            },
        }
    }

    /// The byte so far ahead, if it is the first of its kind.
    pub(crate) fn delimiter_at(&mut self, ahead: usize) -> Option<u8> {
        if ahead > 500 {
            return None;
        }
        let mut pattern = peers_bytes(self.seed, self.read);
        let mut bytes = Vec::new();
        while bytes.len() <= ahead {
            bytes.extend_from_slice(pattern.next(ahead + 1 - bytes.len()));
        }
        let delimiter = bytes[ahead];
        (!bytes[..ahead].contains(&delimiter)).then_some(delimiter)
    }

    /// Some way to wait for more than has been sent, and how many bytes it waits for in all.
    pub(crate) fn waiting_op(&mut self, to_succeed: bool) -> (ReadOp, usize) {
        let unread = self.unread();
        let most = if self.random.next() % 6 == 0 { 200_000 } else { 2_000 };
        let n = unread + self.random.length(most);
        let op = match self.random.between(0, 9) {
            0 | 1 => ReadOp::Next(n),
            2 => ReadOp::Peek(n),
            3 => ReadOp::Skip(n),
            4 => ReadOp::SplitTo(n),
            5 => ReadOp::Fill(n),
            6 if unread < 4 => return (ReadOp::U32, 4),
            7 => match self.delimiter_at(n - 1) {
                Some(delimiter) => ReadOp::Until { delimiter, max_bytes: n },
                None => ReadOp::Next(n),
            },
            8 if to_succeed => ReadOp::ReadAll(n),
            9 => {
                self.settle();
                return (ReadOp::More, unread + 1);
            }
            _ => ReadOp::Next(n),
        };
        (op, n)
    }

    /// What the wait that was begun last gets from such an end.
    pub(crate) fn more_aware(&self, end: &Outcome) -> Outcome {
        let last = self.steps.iter().rev().find_map(|planned| match &planned.step {
            Step::Read(_, op) => Some(op),
            _ => None,
        });
        match last {
            Some(ReadOp::More) if *end == END => Outcome::Value(0),
            _ => end.clone(),
        }
    }

    pub(crate) fn begin_write(&mut self, op: WriteOp) {
        self.step(Step::Write(self.flushed + self.staged, op));
    }

    /// What is staged is flushed.
    pub(crate) fn hand_over(&mut self) {
        self.flushed += self.staged;
        self.unsent += self.staged;
        self.staged = 0;
    }

    pub(crate) fn output_high(&self) -> u64 {
        if self.tight { TIGHT_OUTPUT_BYTES as u64 } else { DEFAULT_OUTPUT_BYTES }
    }

    /// Sets a limit, from this side or that.
    pub(crate) fn limit(&mut self, op: ControlOp) {
        let in_a_callback = self.phase != Phase::Between && self.input != Side::Gone;
        if in_a_callback && self.random.next() % 2 == 0 {
            self.expect_read(ReadOp::Control(op), Outcome::Done);
        } else {
            self.limit_elsewhere(op);
        }
    }

    pub(crate) fn limit_elsewhere(&mut self, op: ControlOp) {
        self.step(Step::Control(op));
    }
}
