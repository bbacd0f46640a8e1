//! How long one direction of a connection may wait.

use std::time::Duration;

use crate::timer::Tick;

/// Later than any deadline.
pub(crate) const NEVER: Tick = Tick::MAX;

/// No timeout.
const NO_TIMEOUT: u32 = u32::MAX;

/// The limits of one direction, and the wait that is under way, if one is.
///
/// A timeout counts from the beginning of each wait, a deadline is a point in time. The earlier one ends the wait.
/// What a wait leaves behind ends with it: an expiry that comes too late does not touch the next one.
#[derive(Debug)]
pub(super) struct Wait {
    /// In ticks; `NO_TIMEOUT` for none. Every connection has two of these, and more than 49 days are as good as none.
    timeout: u32,
    /// `NEVER` for none, as below.
    deadline: Tick,
    /// When the wait that is under way began.
    since: Tick,
    /// The wait has expired, and its owner does not know yet.
    expired: bool,
    /// The wait that is under way has no limit, whatever is set.
    exempt: bool,
}

impl Wait {
    pub(super) fn new(timeout: Option<Duration>) -> Wait {
        Wait {
            timeout: few_ticks(timeout),
            deadline: NEVER,
            since: NEVER,
            expired: false,
            exempt: false,
        }
    }

    /// A poll of a wait: begins one, unless it is under way. False if it is over time.
    pub(super) fn go_on(&mut self, now: impl FnOnce() -> Tick) -> bool {
        self.exempt = false;
        if self.timeout().is_none() && self.deadline == NEVER && !self.expired {
            // Nothing to look for, so the time need not be known; a limit that is set later counts from then.
            return true;
        }
        if !std::mem::take(&mut self.expired) {
            let now = now();
            self.begin(now);
            if self.until() > now {
                return true;
            }
        }
        self.since = NEVER;
        false
    }

    /// A poll of a wait that is not to expire.
    pub(super) fn go_on_exempt(&mut self) {
        self.end();
        self.exempt = true;
    }

    /// The wait is over, for whatever reason.
    pub(super) fn end(&mut self) {
        self.since = NEVER;
        self.expired = false;
    }

    /// When the wait that is under way expires; never if none is.
    pub(super) fn until(&self) -> Tick {
        if self.since == NEVER {
            return NEVER;
        }
        // A tick more, since the wait began somewhere within one.
        let timeout = self.timeout().map_or(NEVER, |timeout| self.since + timeout + 1);
        timeout.min(self.deadline)
    }

    /// Expires the wait, if it is due.
    pub(super) fn expire(&mut self, now: Tick) -> bool {
        let due = self.until() <= now;
        if due {
            self.since = NEVER;
            self.expired = true;
        }
        due
    }

    /// Sets the timeout of this wait and of those to come.
    pub(super) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = few_ticks(timeout);
    }

    /// Sets the deadline of this wait and of those to come.
    pub(super) fn set_deadline(&mut self, deadline: Option<Tick>) {
        self.deadline = deadline.unwrap_or(NEVER);
    }

    /// A limit was set while somebody waited, who had looked at none.
    pub(super) fn began(&mut self, now: Tick) {
        if !self.exempt {
            self.begin(now);
        }
    }

    fn begin(&mut self, now: Tick) {
        if self.since == NEVER {
            self.since = now;
        }
    }

    pub(super) fn timeout(&self) -> Option<Tick> {
        (self.timeout != NO_TIMEOUT).then_some(Tick::from(self.timeout))
    }
}

fn few_ticks(timeout: Option<Duration>) -> u32 {
    timeout.and_then(|timeout| u32::try_from(ticks(timeout)).ok()).unwrap_or(NO_TIMEOUT)
}

/// Ticks, rounded up, so that nothing expires too early.
pub(super) fn ticks(duration: Duration) -> Tick {
    Tick::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(NEVER - 1)
}
