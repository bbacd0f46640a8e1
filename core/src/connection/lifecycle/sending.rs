//! The sending direction.

use std::mem;
use std::task::{Poll, Waker};

use super::Lifecycle;
use super::outcome::{Amount, Moved, Polled, Refusal};
use super::state::{Notes, Output, Phase};
use crate::buffer::BufferSeam;
use crate::buffer::{Chain, LinkBuffer};
use crate::clock::Clock;
use crate::connection::effects::{Effects, Offer};
use crate::connection::wait::Owner;
use crate::poll::{Next, Outputs};
use crate::timer::Tick;

/// From so many bytes on a flush is much.
const MUCH_BYTES: usize = 16 << 10;

impl Lifecycle {
    /// As [`flush`](Lifecycle::flush), if there is nothing to wait for and nobody waits: the way that nearly every reply
    /// takes. Says whether there is something new to send; none if it was not done.
    #[inline]
    pub(crate) fn flush_at_once(
        &mut self,
        staged: &mut LinkBuffer,
        high: usize,
    ) -> Option<Option<Amount>> {
        let bytes = staged.len() + staged.reserved_len();
        let free = self.writer.is_none() && self.writing.is_none() && !self.idle.is_limited();
        if self.output != Output::Open || !free || self.unsent + bytes > high {
            return None;
        }
        if bytes == 0 {
            return Some(None);
        }
        staged.drain_into(&mut self.outbox);
        self.unsent += bytes;
        Some(self.ask_to_send())
    }

    /// Hands over what is staged. Waits if more than `high` bytes are unsent, until no more than `low` are.
    pub(crate) fn flush(
        &mut self,
        staged: &mut LinkBuffer,
        (high, low): (usize, usize),
        owner: Owner,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled::new();
        if let Err(refusal) = self.submit(staged, &mut polled, clock) {
            polled.unused = self.end_writing();
            polled.result = Poll::Ready(Err(refusal));
            return polled;
        }
        // A wait that has begun ends at the low mark, so that it is not for a few bytes only.
        let limit = if self.writer.is_some() { low } else { high };
        let result = if self.unsent <= limit {
            Ok(())
        } else if self.notes.take(Notes::NO_ROOM) {
            Err(Refusal::NoMemory)
        } else if self.writing.go_on_in_time(owner, || clock.now()) {
            // For the engine to know that somebody waits.
            let begins = self.writer.is_none();
            if !offer.keep_in(&mut self.writer) {
                polled.retry = true;
                return polled;
            }
            if begins {
                polled.send = Some(self.amount());
            }
            self.wake_at = u32::try_from(low).unwrap_or(u32::MAX);
            self.arm();
            return polled;
        } else {
            Err(Refusal::TimedOut)
        };
        polled.unused = self.end_writing();
        polled.result = Poll::Ready(result);
        polled
    }

    /// Hands over a message if there is room for it: if no more than `high` bytes are unsent then, or no more than half as many
    /// now, so that a large one need not wait for ever. `yields`: only that half is for it, since others wait. Says whether
    /// it did.
    #[inline]
    pub(crate) fn send_at_once(
        &mut self,
        message: &mut LinkBuffer,
        (high, yields): (usize, bool),
        polled: &mut Polled,
        clock: &dyn Clock,
    ) -> Result<bool, Refusal> {
        let bytes = message.len() + message.reserved_len();
        let fits = !yields && self.unsent.saturating_add(bytes) <= high;
        // What is refused is refused at once.
        let takes = match self.output {
            Output::Open => true,
            Output::Connecting => !self.finish_connected,
            _ => false,
        };
        let hands_over = fits || self.unsent <= high / 2 || !takes;
        if hands_over {
            self.submit(message, polled, clock)?;
        }
        Ok(hands_over || bytes == 0)
    }

    /// As [`send_at_once`](Lifecycle::send_at_once), but waits for room, and none of it is handed over before; without a message
    /// until nothing is unsent. `since`: when the wait of this one has begun; there may be others, which are told together. The
    /// wait that is left when nobody waits any more is [ended](Lifecycle::end_writing) by the caller.
    pub(crate) fn send(
        &mut self,
        mut message: Option<&mut LinkBuffer>,
        high: usize,
        since: Tick,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled::new();
        let (low, sent) = match &mut message {
            Some(message) => {
                (high / 2, self.send_at_once(message, (high, false), &mut polled, clock))
            }
            None => match self.output {
                Output::Failed(errno) => (0, Err(Refusal::Errno(errno.get()))),
                _ => (0, Ok(self.unsent == 0)),
            },
        };
        let result = match sent {
            Ok(true) => Ok(()),
            Err(refusal) => Err(refusal),
            Ok(false) if self.notes.take(Notes::NO_ROOM) => Err(Refusal::NoMemory),
            Ok(false) if self.writing.is_over(since, || clock.now()) => Err(Refusal::TimedOut),
            Ok(false) => {
                let begins = self.writer.is_none();
                if !offer.keep_in(&mut self.writer) {
                    polled.retry = true;
                    return polled;
                }
                self.writing.go_on_since(since);
                let low = u32::try_from(low).unwrap_or(u32::MAX);
                self.wake_at = if begins { low } else { self.wake_at.max(low) };
                if begins {
                    // For the engine to know that somebody waits.
                    polled.send = Some(self.amount());
                }
                self.arm();
                return polled;
            }
        };
        polled.result = Poll::Ready(result);
        polled
    }

    /// Hands over what is staged, if that is still possible.
    pub(crate) fn submit(
        &mut self,
        staged: &mut LinkBuffer,
        polled: &mut Polled,
        clock: &dyn Clock,
    ) -> Result<(), Refusal> {
        let bytes = staged.len() + staged.reserved_len();
        match self.output {
            Output::Failed(errno) => return Err(Refusal::Errno(errno.get())),
            Output::Finishing | Output::Finished if bytes > 0 => return Err(self.finished()),
            Output::Connecting if self.finish_connected && bytes > 0 => {
                return Err(self.finished());
            }
            _ => {}
        }
        if bytes > 0 {
            staged.drain_into(&mut self.outbox);
            self.unsent += bytes;
            polled.send = self.ask_to_send();
            self.recount(clock);
            self.arm();
        }
        Ok(())
    }

    pub(super) fn finished(&self) -> Refusal {
        if self.notes.has(Notes::WOUND_UP) {
            Refusal::Errno(libc::ECONNABORTED)
        } else {
            Refusal::Closed
        }
    }

    /// Waits until the connect has ended.
    pub(crate) fn poll_connected(
        &mut self,
        owner: Owner,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled::new();
        let result = match self.output {
            Output::Failed(errno) => Err(Refusal::Errno(errno.get())),
            Output::Connecting => {
                if self.writing.go_on_untimed(owner, || clock.now()) {
                    if !offer.keep_in(&mut self.writer) {
                        polled.retry = true;
                        return polled;
                    }
                    self.wake_at = 0;
                    self.arm();
                    return polled;
                }
                Err(Refusal::TimedOut)
            }
            Output::Open | Output::Finishing | Output::Finished => Ok(()),
        };
        polled.unused = self.end_writing();
        polled.result = Poll::Ready(result);
        polled
    }

    /// The connect has succeeded.
    pub(crate) fn connected(&mut self, clock: &dyn Clock) -> (Effects, Option<Amount>) {
        let mut send = None;
        if self.output == Output::Connecting {
            let finish = self.finish_connected;
            self.output = if finish { Output::Finishing } else { Output::Open };
            send = if finish { self.ask_to_send() } else { None };
        }
        let effects = Effects { writer: self.end_writing(), ..Effects::default() };
        self.recount(clock);
        self.arm();
        (effects, send)
    }

    /// Moves the outbox to the end of `sending`, and says whether something waits for that to be taken. If there is nothing
    /// to send, what to do: to finish, once, when all is out that ever will be.
    #[inline]
    pub(crate) fn take_output(&mut self, sending: &mut Chain) -> Result<bool, Outputs> {
        self.send_posted = false;
        if self.phase.is_over() || matches!(self.output, Output::Failed(_)) {
            return Err(Outputs::Nothing);
        }
        sending.append(&mut self.outbox);
        if !sending.is_empty() {
            return Ok(self.writer.is_some() || self.output != Output::Open);
        }
        if self.output == Output::Finishing {
            self.output = Output::Finished;
            return Err(Outputs::Finish);
        }
        Err(Outputs::Nothing)
    }

    /// The kernel took `n` bytes of `sending`, which are gone from it already.
    #[inline]
    pub(crate) fn sent(
        &mut self,
        n: usize,
        sending: &mut Chain,
        at: impl FnOnce() -> Tick,
    ) -> Moved {
        self.unsent = self.unsent.saturating_sub(n);
        self.sent_bytes += n as u64;
        let rest = !sending.is_empty() || self.output == Output::Finishing;
        sending.append(&mut self.outbox);
        if self.idle.is_limited() {
            let now = at();
            self.idle.moved(now);
            self.idle.count(self.waits_for_peer(), now);
        }
        let mut waker = None;
        if self.writer.is_some() {
            if self.unsent <= self.wake_at as usize {
                waker = self.end_writing();
            } else if n > 0 {
                self.writing.progressed();
            }
        }
        let next = match sending.is_empty() {
            _ if rest => Next::More,
            true => Next::Stop,
            false => Next::Fresh,
        };
        Moved { waker, next, closing: self.phase != Phase::Open }
    }

    /// Whether what is to be sent may go past the poller, since nothing is before it.
    pub(crate) fn may_send_directly(&self) -> bool {
        let open = self.output == Output::Open && self.phase == Phase::Open;
        open && self.unsent == 0 && self.writer.is_none()
    }

    /// Something has gone past the poller.
    pub(crate) fn sent_directly(&mut self, bytes: usize, clock: &dyn Clock) {
        self.sent_bytes += bytes as u64;
        if self.idle.is_limited() {
            self.idle.moved(clock.now());
        }
    }

    /// What is unsent takes memory that others need, and its peer does not read: whoever waits is told, if somebody does. It
    /// may try again.
    pub(crate) fn lack_room(&mut self) -> Option<Effects> {
        self.writer.as_ref()?;
        let writer = self.end_writing();
        self.notes.add(Notes::NO_ROOM);
        self.notes.add(Notes::HURRIES);
        Some(Effects { writer, ..Effects::default() })
    }

    /// The writer waits no more.
    #[inline]
    pub(crate) fn end_writing(&mut self) -> Option<Waker> {
        self.writing.end();
        self.late_send = false;
        self.notes.take(Notes::NO_ROOM);
        self.writer.take()
    }

    /// Ends the sending direction behind what was flushed, and what is staged if that is said. Says whether there is
    /// something to send, if only the FIN.
    pub(crate) fn finish(
        &mut self,
        staged: Option<&mut LinkBuffer>,
        clock: &dyn Clock,
    ) -> Option<Amount> {
        let mut polled = Polled::new();
        if let Some(staged) = staged {
            // Refused only if it has ended already.
            let _ = self.submit(staged, &mut polled, clock);
        }
        match self.output {
            Output::Open => {
                self.output = Output::Finishing;
                polled.send = polled.send.or(self.ask_to_send());
            }
            Output::Connecting => self.finish_connected = true,
            _ => {}
        }
        polled.send
    }

    /// Has the poller send what there is, unless it knows already.
    #[inline]
    pub(super) fn ask_to_send(&mut self) -> Option<Amount> {
        let known = mem::replace(&mut self.send_posted, true);
        (!known).then(|| self.amount())
    }

    pub(super) fn amount(&self) -> Amount {
        if self.unsent >= MUCH_BYTES { Amount::Much } else { Amount::Little }
    }

    #[cfg(feature = "zerocopy")]
    pub(crate) fn retry_zerocopy(&mut self) {
        self.retries_zerocopy = true;
    }

    #[cfg(feature = "zerocopy")]
    pub(crate) fn takes_retry(&mut self) -> bool {
        mem::take(&mut self.retries_zerocopy)
    }
}
