//! What can be done to a connection while somebody else reads and writes.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Input, Output, Shared, State, Wakers, wait};
use crate::mailbox::Command;

/// A handle on a connection: to limit what it may wait for, to pause it, and to end it. From any thread, while others
/// read and write.
///
/// # Timeouts and deadlines
/// A *timeout* counts from the beginning of each wait; a *deadline* is a point in time, and goes for every wait until
/// it is changed. The earlier of the two ends a wait with [`TimedOut`](std::io::ErrorKind::TimedOut). The connection
/// is still good then, nothing is lost, and the wait can be taken up again. Bytes that have arrived are read even
/// if the deadline has passed: a deadline ends waits, not calls that need not wait.
///
/// A deadline in the past ends, at once, the wait that is under way. Setting a later one, or none, makes the
/// connection usable again. Resolution: one millisecond, rounded up.
///
/// A handle does not keep the connection open; when it is closed, calls do nothing.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>) -> Control {
        Control { shared }
    }

    /// How long each wait for bytes to arrive may take; none: for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.change(|state| state.reading.set_timeout(timeout));
    }

    /// How long each wait of a flush may take; none: for ever. A connection that is closed also gets so long to send
    /// what was flushed.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.change(|state| state.writing.set_timeout(timeout));
    }

    /// Until when reads may wait; none: for ever.
    pub fn set_read_deadline(&self, deadline: Option<Instant>) {
        let deadline = deadline.map(|instant| self.shared.mailbox.clock().tick_of(instant));
        self.change(|state| state.reading.set_deadline(deadline));
    }

    /// Until when flushes may wait; none: for ever.
    pub fn set_write_deadline(&self, deadline: Option<Instant>) {
        let deadline = deadline.map(|instant| self.shared.mailbox.clock().tick_of(instant));
        self.change(|state| state.writing.set_deadline(deadline));
    }

    /// How long no byte may move in either direction before the connection is ended with
    /// [`TimedOut`](std::io::ErrorKind::TimedOut) for both; none: for ever.
    pub fn set_idle_timeout(&self, timeout: Option<Duration>) {
        self.change(|state| state.idle_timeout = timeout.map(wait::ticks));
    }

    /// Whether both directions can still be used, as far as this side knows.
    pub fn is_active(&self) -> bool {
        let state = self.shared.state();
        state.input == Input::Open && state.output == Output::Open
    }

    /// Closes the connection; see [`Reader::close`](super::Reader::close).
    pub fn close(&self) {
        self.shared.close();
    }

    /// Ends the connection at once, on TCP with a reset: what was flushed and not sent is dropped. Whoever waits is
    /// woken with `ECONNABORTED`.
    pub fn abort(&self) {
        self.shared.abort();
    }

    /// The socket, for options and addresses. None under a simulated engine.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.shared.socket()
    }

    /// Changes a limit, and sees to it that a wait that is under way keeps the new one.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let now = self.shared.mailbox.clock().now();
        let (wakers, arm) = {
            let mut state = self.shared.state();
            change(&mut state);
            let mut wakers = Wakers::default();
            if state.reader.is_some() && state.need > 0 {
                state.reading.began(now);
                if state.reading.expire(now) {
                    state.need = 0;
                    wakers.0 = state.reader.take();
                }
            }
            if state.writer.is_some() {
                state.writing.began(now);
                if state.writing.expire(now) {
                    wakers.1 = state.writer.take();
                }
            }
            let due = state.reading.until().min(state.writing.until());
            let idle = state.idle_timeout.is_some() && !state.close_posted;
            (wakers, due < state.armed || idle)
        };
        if arm {
            self.shared.mailbox.post(Command::Arm(self.shared.token));
        }
        wakers.wake();
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.shared).finish()
    }
}
