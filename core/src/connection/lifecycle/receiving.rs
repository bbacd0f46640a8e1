//! The receiving direction.

use std::mem;
use std::task::{Poll, Waker};

use super::outcome::{Expected, Moved, Polled, Refusal};
use super::request::Wanted;
use super::state::{Errno, Input, Notes, Output, Phase, Serving, Todo};
use super::{Lifecycle, NOT_ASKED, few};
use crate::buffer::BufferSeam;
use crate::buffer::{Chain, LinkBuffer};
use crate::clock::Clock;
use crate::connection::effects::{Effects, Offer};
use crate::poll::Next;

impl Lifecycle {
    /// As [`fill`](Lifecycle::fill), if a wait has ended with what it waited for and there is nothing else to do: the way
    /// that nearly every request takes. Gives how many bytes were handed over.
    #[inline]
    pub(crate) fn take_awaited(
        &mut self,
        buffer: &mut LinkBuffer,
        min_bytes: usize,
        is_request: bool,
    ) -> Option<usize> {
        let bytes = self.inbox.len();
        let ended = self.need == 0 && self.reader.is_none() && self.reading.is_none();
        if !ended
            || self.stopped
            || self.notes.has(Notes::NO_MEMORY)
            || buffer.len() + bytes < min_bytes
        {
            return None;
        }
        buffer.adopt_chain(&mut self.inbox);
        if is_request {
            self.serving = Serving::Within;
        }
        Some(bytes)
    }

    /// Hands over what has arrived, and waits for more if that is too little.
    pub(crate) fn fill(
        &mut self,
        buffer: &mut LinkBuffer,
        min_bytes: usize,
        wanted: Wanted,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled { taken: self.inbox.len(), ..Polled::new() };
        buffer.adopt_chain(&mut self.inbox);
        if mem::take(&mut self.stopped) {
            self.ask(Todo::RECEIVE);
        }
        let is_request = matches!(wanted, Wanted::Request);
        let refused = if buffer.len() >= min_bytes {
            None
        } else if self.notes.take(Notes::NO_MEMORY) {
            Some(Refusal::NoMemory)
        } else if self.input == Input::Open {
            let goes_on = match wanted {
                Wanted::Bytes(owner) => self.reading.go_on(owner, || clock.now()),
                Wanted::Rest => self.reading.go_on_whole(|| clock.now()),
                Wanted::Request | Wanted::Whatever => {
                    self.reading.go_on_exempt();
                    true
                }
            };
            // To whoever waits for a request, no more of them is the end.
            let ends = is_request && buffer.is_empty() && self.is_drained();
            if goes_on && !ends {
                if !offer.keep_in(&mut self.reader) {
                    polled.retry = true;
                    return polled;
                }
                self.need = min_bytes - buffer.len();
                self.has_part = !buffer.is_empty();
                if is_request {
                    self.serving = Serving::Between;
                }
                self.recount(clock);
                self.arm();
                return polled;
            }
            Some(if ends { Refusal::Ended } else { Refusal::TimedOut })
        } else {
            Some(match self.input {
                Input::Failed(errno) => Refusal::Errno(errno.get()),
                Input::Closed => Refusal::Closed,
                Input::Open | Input::Ended => Refusal::Ended,
            })
        };
        if is_request {
            self.serving = Serving::Within;
        }
        polled.unused = self.end_reading(clock);
        polled.result = Poll::Ready(refused.map_or(Ok(()), Err));
        polled
    }

    /// A message is larger than it may be: nothing more is received. What this side sends still goes out.
    pub(crate) fn overrun(&mut self, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        if self.input == Input::Open {
            self.paused = true;
            let peer_done = self.peer_done;
            self.fail_input(Input::Failed(Errno::new(libc::EMSGSIZE)), &mut effects, clock);
            // It will still send its FIN.
            self.peer_done = peer_done;
        }
        effects
    }

    /// The reader begins to wait for a whole message: all of its waits until that is there are one, with one timeout.
    pub(crate) fn begin_message(&mut self, clock: &dyn Clock) {
        self.reading.begin_whole(|| clock.now());
    }

    /// How much more the reader waits for to the part that it has, if that is more than so many bytes.
    pub(crate) fn awaits_more_than(&self, bytes: usize) -> Option<usize> {
        let awaited = self.need.saturating_sub(self.inbox.len());
        let waits = self.reader.is_some() && self.lags() && self.phase == Phase::Open;
        (waits && awaited > bytes).then_some(awaited)
    }

    /// There is no memory for what the reader waits for. It may try again.
    pub(crate) fn lack_memory(&mut self, clock: &dyn Clock) -> Effects {
        let reader = self.end_reading(clock);
        self.notes.add(Notes::NO_MEMORY);
        Effects { reader, ..Effects::default() }
    }

    /// The reader waits no more.
    #[inline]
    pub(crate) fn end_reading(&mut self, clock: &dyn Clock) -> Option<Waker> {
        self.need = 0;
        self.notes.take(Notes::NO_MEMORY);
        self.reading.end();
        self.late = NOT_ASKED;
        let waker = self.reader.take();
        self.recount(clock);
        waker
    }

    /// A server begins to serve it.
    pub(crate) fn serve(&mut self) {
        self.serving = Serving::Within;
    }

    /// To be idle is a way to end.
    pub(crate) fn ends_when_idle(&mut self) {
        self.notes.add(Notes::ENDS_WHEN_IDLE);
    }

    /// Receives nothing until [`resume`](Lifecycle::resume).
    pub(crate) fn pause(&mut self, clock: &dyn Clock) {
        self.paused = true;
        self.recount(clock);
    }

    /// Whether nothing is received, since its user wants it so.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Receives again.
    pub(crate) fn resume(&mut self, clock: &dyn Clock) {
        if mem::take(&mut self.paused) {
            self.ask(Todo::RECEIVE);
            self.recount(clock);
            self.arm();
        }
    }

    /// What is to be received, if anything is.
    #[inline]
    pub(crate) fn receives(&self) -> Option<Expected> {
        match self.phase {
            Phase::Open if self.paused => None,
            // Even if it was paused: for the peer's FIN.
            Phase::Open | Phase::Sending | Phase::Lingering => Some(Expected {
                lags: self.lags(),
                awaited: self.need.saturating_sub(self.inbox.len()),
            }),
            Phase::Leaving | Phase::Deregistered { .. } | Phase::Released { .. } => None,
        }
    }

    #[inline]
    pub(crate) fn lags(&self) -> bool {
        !self.inbox.is_empty() || (self.need > 0 && self.has_part)
    }

    /// Bytes have arrived that are not [discarded](Lifecycle::discards): `push` puts them into the inbox, and is told whether
    /// others wait already.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        input_high_bytes: usize,
        clock: &dyn Clock,
        push: impl FnOnce(&mut Chain, bool),
    ) -> Moved {
        let before = self.inbox.len();
        let lags = self.lags();
        push(&mut self.inbox, lags);
        self.notes.add(Notes::HAS_RECEIVED);
        let bytes = self.inbox.len() - before;
        self.received_bytes += bytes as u64;
        if self.expected > 0 || self.late != NOT_ASKED || self.idle.is_limited() {
            self.arrived(bytes, clock);
        }
        let closing = self.phase != Phase::Open;
        let mut waker = None;
        if self.need > 0 && self.inbox.len() >= self.need {
            waker = self.end_reading(clock);
        }
        // A reader that waits for more than the watermark must get it.
        self.stopped = self.inbox.len() >= input_high_bytes.max(self.need);
        let stops = self.stopped || (self.paused && !closing);
        Moved { waker, next: if stops { Next::Stop } else { Next::More }, closing }
    }

    /// Bytes have arrived that nobody is to have.
    pub(crate) fn discard(&mut self, bytes: usize, clock: &dyn Clock) -> Moved {
        self.received_bytes += bytes as u64;
        self.arrived(bytes, clock);
        Moved { waker: None, next: Next::More, closing: self.phase != Phase::Open }
    }

    #[cold]
    pub(super) fn arrived(&mut self, bytes: usize, clock: &dyn Clock) {
        self.expected = self.expected.saturating_sub(few(bytes));
        if self.late != NOT_ASKED {
            self.late = self.late.saturating_sub(few(bytes));
        }
        if self.idle.is_limited() {
            self.idle.moved(clock.now());
        }
    }

    /// There is nothing more to receive: the peer sent its FIN, or the kernel has told a send already that the
    /// connection is broken, which it tells once.
    pub(crate) fn end_input(&mut self, clock: &dyn Clock) -> Effects {
        let how = match self.output {
            // A send into a connection that the peer has closed breaks only what is sent.
            Output::Failed(errno) if errno.get() != libc::EPIPE => Input::Failed(errno),
            _ => Input::Ended,
        };
        let mut effects = Effects::default();
        self.fail_input(how, &mut effects, clock);
        effects
    }
}
