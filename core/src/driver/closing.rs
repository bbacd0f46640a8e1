//! The end of a connection: sending what was flushed, the FINs of both sides, and giving the socket back to the engine.

use super::Driver;
use super::slot::Slot;
use crate::connection::{Closing, LATE, Phase, Reason, Todo};
#[cfg(feature = "zerocopy")]
use crate::poll::Deregister;
use crate::poll::Poll;
use crate::timer::Tick;
use crate::token::Token;
use crate::trace;

/// How long a closed connection may take to send what was flushed before, in milliseconds.
const CLOSE_SEND_MS: Tick = 10_000;
/// How long a closed connection drops what still arrives, waiting for the peer's FIN, in milliseconds. A socket that
/// is closed with bytes unread sends a reset, which can destroy our last bytes on their way to the peer's user.
const CLOSE_RECEIVE_MS: Tick = 1_000;
/// How long a connection that is to be detached waits until the kernel reads no more from its memory, in milliseconds.
const DETACH_MS: Tick = 1_000;

impl Driver {
    /// It was closed by this side.
    pub(super) fn begin_closing<P: Poll>(&mut self, engine: &mut P, token: Token) {
        if self.postpone_todo(engine, token, Todo::CLOSE).is_none() {
            return;
        }
        let now = self.mailbox.clock().now();
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return };
        if stream.shared.phase() != Phase::Sending || std::mem::replace(&mut stream.closing, true) {
            return;
        }
        self.open.one_less(stream.group, stream.shared.uncount());
        stream.due = now.saturating_add(stream.shared.write_timeout().unwrap_or(CLOSE_SEND_MS));
        self.wheel.set(token.index(), stream.due);
        // For the FIN, and to find out that there is nothing else.
        engine.send(token, self);
        self.go_on_closing(engine, token);
        // Above the watermark the engine had stopped; now what comes is dropped, and the peer's FIN is waited for.
        if self.slots.get(token).is_some() {
            engine.receive(token, self);
        }
        self.look_at_closing(token);
    }

    /// Sets the timer of a closed connection that still sends: for its end, or for that of a flush that waits.
    pub(super) fn look_at_closing(&mut self, token: Token) {
        let now = self.mailbox.clock().now();
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return };
        if stream.closing && stream.shared.phase() == Phase::Sending {
            let (shared, due) = (stream.shared.clone(), stream.due);
            self.wheel.set(token.index(), due.min(shared.expire_flush(now)));
        }
    }

    /// Takes a closed connection to its next phase, if it has come to the end of one.
    pub(super) fn go_on_closing<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return };
        match stream.shared.go_on_closing(stream.has_pinned()) {
            Closing::Stays => {}
            Closing::Lingers => {
                stream.due = self.mailbox.clock().now() + CLOSE_RECEIVE_MS;
                stream.prolonged = false;
                self.wheel.set(token.index(), stream.due);
            }
            Closing::Ends => self.deregister(engine, token, Reason::Closed),
        }
    }

    /// The timer of a closed connection has fired.
    pub(super) fn end_closing<P: Poll>(&mut self, engine: &mut P, token: Token) {
        // The FIN may have gone out since.
        self.go_on_closing(engine, token);
        let now = self.mailbox.clock().now();
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return };
        if now < stream.due {
            return self.look_at_closing(token);
        }
        let phase = stream.shared.phase();
        if now - stream.due >= LATE && !stream.prolonged {
            // The poller was held up, and has not looked at what the peer did meanwhile.
            stream.prolonged = true;
            stream.due = now.saturating_add(match phase {
                Phase::Sending => stream.shared.write_timeout().unwrap_or(CLOSE_SEND_MS),
                _ => CLOSE_RECEIVE_MS,
            });
            self.wheel.set(token.index(), stream.due);
            return self.look_at_closing(token);
        }
        match phase {
            Phase::Sending => self.deregister(engine, token, Reason::Unsent),
            Phase::Lingering => {
                self.stats.close_timeouts += 1;
                self.deregister(engine, token, Reason::Closed);
            }
            _ => {}
        }
    }

    /// Gives the socket to whoever asked for it.
    pub(super) fn detach<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let now = self.mailbox.clock().now();
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return };
        if !stream.shared.leave() {
            return;
        }
        self.open.one_less(stream.group, stream.shared.uncount());
        if stream.has_pinned() {
            // The notices would come to somebody who does not know of them.
            stream.due = now + DETACH_MS;
            self.wheel.set(token.index(), stream.due);
        } else {
            self.deregister(engine, token, Reason::Detached);
        }
    }

    /// Gives a connection back to the engine, if that has not been done.
    pub(super) fn deregister<P: Poll>(&mut self, engine: &mut P, token: Token, reason: Reason) {
        if self.postpone_end(token, reason) {
            return;
        }
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return };
        let shared = stream.shared.clone();
        let Some(end) = shared.deregister(reason, stream.has_pinned()) else { return };
        #[cfg(feature = "zerocopy")]
        {
            stream.reset = end.how == Deregister::Abort;
        }
        self.open.one_less(stream.group, end.was_open);
        match reason {
            Reason::Forced | Reason::Unsent => self.stats.forced += u64::from(end.forced),
            Reason::Idle => self.stats.idle_timeouts += 1,
            Reason::Closed | Reason::Aborted | Reason::Detached => {}
        }
        self.wheel.clear(token.index());
        engine.deregister(token, end.how, self);
        trace::closed(&*shared, || shared.ended(reason));
        end.effects.perform();
    }
}
