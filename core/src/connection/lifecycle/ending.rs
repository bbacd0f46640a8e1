//! How it ends.

use std::mem;
use std::task::Poll;

use super::outcome::{Closing, End, Polled, Refusal};
use super::request::{Half, Reason};
use super::state::{Errno, Input, Notes, Output, Phase, Todo};
use super::{Lifecycle, few};
use crate::buffer::BufferSeam;
use crate::buffer::LinkBuffer;
use crate::clock::Clock;
use crate::connection::effects::{Callback, Callbacks, Effects, Offer, When};
use crate::poll::Deregister;

impl Lifecycle {
    /// Ends both directions from this side: what was flushed still goes out, and what is staged if that is said; what
    /// arrives is dropped.
    pub(crate) fn close(&mut self, staged: Option<&mut LinkBuffer>, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        if !matches!(self.phase, Phase::Open | Phase::Leaving) {
            return effects;
        }
        self.phase = Phase::Sending;
        // Whoever was taking the socket away has thought better of it.
        self.detaching = false;
        effects.dropped = mem::take(&mut self.inbox);
        // Also what ended, if there was something left of it: that must not look like the end of a whole message.
        if matches!(self.input, Input::Open | Input::Ended) {
            self.input = Input::Closed;
        }
        if self.output == Output::Connecting {
            // The peer may have accepted it meanwhile.
            self.cut = self.unsent > 0;
            self.fail(libc::ECANCELED, &mut effects, clock);
            self.input = Input::Failed(Errno::new(libc::ECANCELED));
        } else {
            self.finish(staged, clock);
        }
        let reader = self.end_reading(clock);
        effects.reader = effects.reader.take().or(reader);
        effects.callbacks = effects.callbacks.take().or_else(|| self.ended_callbacks());
        // Whoever waits to have something sent that is not flushed waits in vain; others go on waiting.
        effects.writer = effects.writer.take().or(self.writer.take());
        self.ask(Todo::CLOSE);
        effects
    }

    /// A half is gone. What is left of the connection is closed when the other one is, too.
    pub(crate) fn half_gone(&mut self, half: Half, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        match half {
            Half::Reader => {
                self.reader_gone = true;
                effects.dropped = mem::take(&mut self.inbox);
                effects.unused[0] = self.end_reading(clock);
                if mem::take(&mut self.stopped) {
                    // Above the watermark the engine had stopped; now what comes is dropped.
                    self.ask(Todo::RECEIVE);
                }
            }
            Half::Writer => {
                self.writer_gone = true;
                effects.unused[1] = self.end_writing();
            }
        }
        if self.reader_gone && self.writer_gone {
            let unused = mem::take(&mut effects.unused);
            let mut closed = self.close(None, clock);
            closed.dropped.append(&mut effects.dropped);
            closed.unused = unused;
            return closed;
        }
        effects
    }

    /// Ends the connection at once with a reset: what was flushed is dropped.
    pub(crate) fn abort(&mut self, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        if !self.phase.is_over() {
            self.fail(libc::ECONNABORTED, &mut effects, clock);
            self.ask(Todo::ABORT);
        }
        effects
    }

    /// Has the socket taken away from its poller, and waits for that.
    pub(crate) fn detach(
        &mut self,
        buffer: &mut LinkBuffer,
        offer: &mut Offer<'_>,
        clock: &dyn Clock,
    ) -> Polled {
        let mut polled = Polled::new();
        let (begins, goes_on) = match self.phase {
            Phase::Open => (!self.detaching, true),
            Phase::Leaving | Phase::Deregistered { leaves: true } => (false, self.detaching),
            _ => (false, false),
        };
        let result = match (self.phase, self.input) {
            (Phase::Released { detached: true }, input) if !matches!(input, Input::Failed(_)) => {
                polled.taken = self.inbox.len();
                buffer.adopt_chain(&mut self.inbox);
                Ok(())
            }
            (_, Input::Failed(errno)) if begins || !goes_on => Err(Refusal::Errno(errno.get())),
            _ if goes_on => {
                if !offer.keep_in(&mut self.reader) {
                    polled.retry = true;
                    return polled;
                }
                self.need = 0;
                if begins {
                    self.detaching = true;
                    self.ask(Todo::DETACH);
                }
                return polled;
            }
            _ => Err(Refusal::Closed),
        };
        polled.unused = self.end_reading(clock);
        polled.result = Poll::Ready(result);
        polled
    }

    /// Keeps a callback for what is to come. Gives it back if that has been.
    pub(crate) fn call_when(&mut self, when: When, callback: Callback) -> Result<u64, Callback> {
        let failed = matches!(self.output, Output::Failed(_));
        let over = matches!(self.phase, Phase::Released { .. });
        let drains = when == When::Draining && self.draining;
        let ended = self.input != Input::Open || failed;
        if over || drains || (ended && !when.outlasts_the_end(self.only_peer_ended())) {
            return Err(callback);
        }
        Ok(self.callbacks.get_or_insert_default().add(when, callback))
    }

    /// Whether the peer has sent its FIN, and that is all: it may wait for a reply.
    fn only_peer_ended(&self) -> bool {
        let failed = matches!(self.output, Output::Failed(_));
        self.input == Input::Ended && self.phase == Phase::Open && !failed
    }

    /// Those that are to be called now that it has ended.
    fn ended_callbacks(&mut self) -> Callbacks {
        let peers = self.only_peer_ended();
        match &mut self.callbacks {
            Some(callbacks) if callbacks.outlast_the_end(peers) => callbacks.take_ended(peers),
            _ => self.callbacks.take(),
        }
    }

    /// Takes a callback back, if it has not been called.
    pub(crate) fn remove_callback(&mut self, number: u64) -> Option<Callback> {
        self.callbacks.as_mut()?.remove(number)
    }

    /// The connection is broken, for both directions.
    pub(crate) fn fail(&mut self, errno: i32, effects: &mut Effects, clock: &dyn Clock) {
        self.fail_input(Input::Failed(Errno::new(errno)), effects, clock);
        self.fail_output(errno, effects, clock);
    }

    pub(super) fn fail_input(&mut self, how: Input, effects: &mut Effects, clock: &dyn Clock) {
        self.peer_done = true;
        if self.input == Input::Open {
            self.input = how;
            self.notes.add(Notes::PEER_FIRST);
        }
        effects.reader = self.end_reading(clock);
        effects.callbacks = self.ended_callbacks().or(effects.callbacks.take());
    }

    /// Nothing can be sent any more; what was queued is dropped.
    pub(crate) fn fail_output(&mut self, errno: i32, effects: &mut Effects, clock: &dyn Clock) {
        if !matches!(self.output, Output::Failed(_)) {
            self.output = Output::Failed(Errno::new(errno));
            // The socket may live on, and its end must not look like that of the whole.
            self.cut |= self.unsent > 0;
        }
        effects.dropped.append(&mut self.outbox);
        self.unsent = 0;
        effects.writer = self.end_writing();
        effects.callbacks = self.ended_callbacks().or(effects.callbacks.take());
        self.recount(clock);
    }

    /// To be given away when nothing of it is with the kernel any more.
    pub(crate) fn leave(&mut self) -> bool {
        let open = self.phase == Phase::Open && self.detaching;
        if open {
            self.phase = Phase::Leaving;
        }
        open
    }

    /// Takes a connection that is closing to its next phase, if it has come to the end of one.
    pub(crate) fn go_on_closing(&mut self, pinned: bool) -> Closing {
        let is_sent = matches!(self.output, Output::Finished | Output::Failed(_));
        if self.phase == Phase::Sending && is_sent && !pinned {
            self.phase = Phase::Lingering;
            return if self.peer_done { Closing::Ends } else { Closing::Lingers };
        }
        match self.phase {
            Phase::Lingering if self.peer_done => Closing::Ends,
            Phase::Leaving if !pinned => Closing::Ends,
            _ => Closing::Stays,
        }
    }

    /// Ends the registration; none if it has ended already. `pinned`: the kernel reads from memory of it that it has taken
    /// to send.
    pub(crate) fn deregister(
        &mut self,
        reason: Reason,
        pinned: bool,
        clock: &dyn Clock,
    ) -> Option<End> {
        let phase = self.phase;
        if phase.is_over() {
            return None;
        }
        let rests = self.unsent == 0 && self.notes.has(Notes::ENDS_WHEN_IDLE);
        let cut = self.is_cut() && !(reason == Reason::Idle && rests);
        let how = match (reason, phase) {
            (Reason::Aborted, _) => Deregister::Abort,
            (Reason::Detached, _) | (Reason::Closed, Phase::Leaving) => Deregister::Leave,
            // The kernel may never come to the end of what the peer does not take.
            _ if pinned || cut || self.is_aborted() => Deregister::Abort,
            _ if self.reader_gone && self.writer_gone => Deregister::Close,
            // It has users, who hold on to its socket.
            _ => Deregister::Shutdown,
        };
        let mut effects = Effects::default();
        match reason {
            Reason::Closed | Reason::Detached => {}
            Reason::Unsent | Reason::Idle => self.fail(libc::ETIMEDOUT, &mut effects, clock),
            Reason::Forced | Reason::Aborted => self.fail(libc::ECONNABORTED, &mut effects, clock),
        }
        self.phase = Phase::Deregistered { leaves: how == Deregister::Leave };
        self.recount(clock);
        let forced = matches!(phase, Phase::Open | Phase::Sending | Phase::Leaving);
        Some(End { how, was_open: self.uncount(), forced, effects })
    }

    /// The poller ends: what was flushed still goes out, and nothing else happens any more. False if it is to be ended by
    /// force.
    pub(crate) fn wind_up(&mut self, clock: &dyn Clock) -> (Effects, bool) {
        let mut effects = Effects::default();
        let cut =
            self.output == Output::Connecting || self.is_within_request() || self.is_aborted();
        match self.phase {
            Phase::Open | Phase::Leaving if cut => {
                return (effects, false);
            }
            Phase::Open | Phase::Leaving => {}
            _ => return (effects, true),
        }
        self.phase = Phase::Sending;
        self.detaching = false;
        let peer_done = self.peer_done;
        self.fail_input(Input::Failed(Errno::new(libc::ECONNABORTED)), &mut effects, clock);
        self.peer_done = peer_done;
        self.notes.add(Notes::WOUND_UP);
        self.finish(None, clock);
        self.recount(clock);
        (effects, true)
    }

    /// The engine has let go of the socket.
    pub(crate) fn released(&mut self, clock: &dyn Clock) -> Effects {
        let leaves = matches!(self.phase, Phase::Deregistered { leaves: true });
        let detached = leaves && self.detaching;
        self.phase = Phase::Released { detached };
        let mut effects = Effects { callbacks: self.callbacks.take(), ..Effects::default() };
        effects.dropped.append(&mut self.outbox);
        self.unsent = 0;
        if self.input == Input::Open {
            self.input = Input::Closed;
        }
        if matches!(self.output, Output::Open | Output::Connecting | Output::Finishing) {
            // Whoever still waits to have it sent is told.
            let errno = if detached { libc::ENOTCONN } else { libc::ECONNABORTED };
            self.output = Output::Failed(Errno::new(errno));
        }
        effects.reader = self.end_reading(clock);
        effects.writer = self.end_writing();
        effects
    }

    /// The poller ends, and the engine has not let go.
    pub(crate) fn abandoned(&mut self, clock: &dyn Clock) -> Effects {
        let mut effects = Effects::default();
        self.fail(libc::ECONNABORTED, &mut effects, clock);
        self.phase = Phase::Released { detached: false };
        match (&mut effects.callbacks, self.callbacks.take()) {
            (Some(ended), Some(rest)) => ended.append(*rest),
            (None, rest) => effects.callbacks = rest,
            _ => {}
        }
        effects
    }

    /// The server is shutting down, and so many bytes have arrived that the engine has not delivered yet.
    pub(crate) fn drain(&mut self, expected: usize) -> Effects {
        self.draining = true;
        self.expected = few(expected);
        let callbacks = self.callbacks.as_mut().and_then(|callbacks| callbacks.take_draining());
        // Looks again, and goes on waiting for what it waits for.
        Effects { reader: self.reader.take(), callbacks, ..Effects::default() }
    }

    /// The poller has seen that it is closed. Says whether it was counted among the open ones.
    pub(crate) fn uncount(&mut self) -> bool {
        mem::take(&mut self.counted)
    }

    /// Whether an end now would cut off what the peer is being sent: that must not look like the end of a whole message.
    pub(super) fn is_cut(&self) -> bool {
        match self.output {
            Output::Failed(_) => self.cut,
            Output::Finished => false,
            Output::Connecting => self.unsent > 0,
            Output::Open | Output::Finishing => {
                self.unsent > 0 || (self.phase == Phase::Open && self.is_within_request())
            }
        }
    }
}
