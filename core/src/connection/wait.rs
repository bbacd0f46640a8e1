//! How long one direction of a connection may wait.

use std::time::Duration;

use crate::timer::Tick;

/// Later than any deadline.
pub(crate) const NEVER: Tick = Tick::MAX;

/// No timeout.
const NO_TIMEOUT: u32 = u32::MAX;

/// For how long the end of a wait is kept for a poll that may have been left behind, in milliseconds.
const KEPT_MS: Tick = 20;

/// Whose wait it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A future's, which ends it when it is dropped.
    Future,
    /// That of whoever polls, and may leave it behind without a word. It is one wait as long as it is taken up again
    /// when its waker was called.
    Poll,
}

/// The limits of one direction, and the wait that is under way, if one is.
///
/// A timeout counts from the beginning of each wait, a deadline is a point in time. The earlier one ends the wait.
/// What a wait leaves behind ends with it: an expiry that comes too late does not touch the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// In ticks; `NO_TIMEOUT` for none. Every connection has two of these, and more than 49 days are as good as none.
    timeout: u32,
    state: State,
    /// The wait that is under way has no limit, whatever is set.
    exempt: bool,
    /// Only the deadline counts for it.
    untimed: bool,
    /// It was begun anew, since the poller was late.
    prolonged: bool,
    /// `NEVER` for none.
    deadline: Tick,
    /// When the wait that is under way began, or when it expired.
    since: Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is no wait, or none that anybody has asked the time for.
    None,
    Waiting,
    /// It has expired, and its owner does not know yet.
    Expired,
}

impl Wait {
    pub(super) fn new(timeout: Option<Duration>) -> Wait {
        Wait {
            timeout: few_ticks(timeout),
            state: State::None,
            exempt: false,
            untimed: false,
            prolonged: false,
            deadline: NEVER,
            since: 0,
        }
    }

    /// A poll of a wait: begins one, unless it is under way. False if it has expired.
    #[inline]
    pub(super) fn go_on(&mut self, owner: Owner, now: impl FnOnce() -> Tick) -> bool {
        self.exempt = false;
        if self.state == State::Expired {
            return self.go_on_expired(owner, now());
        }
        // Without a limit the time need not be known; a limit that is set later counts from then.
        if self.state == State::None && self.is_limited() {
            self.begin(now());
        }
        true
    }

    /// The waits that follow are one, as of now.
    pub(super) fn begin_whole(&mut self, now: impl FnOnce() -> Tick) {
        self.end();
        if self.is_limited() {
            self.since = now();
        } else {
            // Whatever is set meanwhile counts from then.
            self.since = NEVER;
        }
    }

    /// Whether the time of somebody who has waited since then is over.
    pub(super) fn is_over(&self, since: Tick, now: impl FnOnce() -> Tick) -> bool {
        if !self.is_limited() {
            return false;
        }
        let now = now();
        let timeout = self.timeout().is_some_and(|timeout| since + timeout < now);
        (timeout && !self.prolonged) || self.deadline <= now
    }

    /// Somebody waits since then, perhaps beside others: the earliest counts.
    pub(super) fn go_on_since(&mut self, since: Tick) {
        self.exempt = false;
        if self.state == State::Waiting && self.since <= since {
            return;
        }
        // What has expired has been told to whoever was concerned.
        self.end();
        if self.is_limited() {
            self.since = since;
            self.state = State::Waiting;
        }
    }

    /// As [`go_on`](Wait::go_on), of a wait that has [begun](Wait::begin_whole) earlier.
    pub(super) fn go_on_whole(&mut self, now: impl FnOnce() -> Tick) -> bool {
        self.exempt = false;
        if self.state == State::Expired {
            return self.go_on_expired(Owner::Future, now());
        }
        if self.state == State::None && self.is_limited() {
            self.state = State::Waiting;
            if self.since == NEVER {
                self.since = now();
            }
        }
        true
    }

    /// As [`go_on`](Wait::go_on), and not beyond the deadline: for waits that nothing from before it can end.
    pub(super) fn go_on_in_time(&mut self, owner: Owner, now: impl FnOnce() -> Tick) -> bool {
        if self.state == State::None && !self.is_limited() {
            self.exempt = false;
            return true;
        }
        let now = now();
        self.go_on(owner, || now) && self.deadline > now
    }

    /// As [`go_on`](Wait::go_on), of a wait that has no timeout, whatever is set.
    pub(super) fn go_on_untimed(&mut self, owner: Owner, now: impl FnOnce() -> Tick) -> bool {
        (self.exempt, self.untimed) = (false, true);
        if self.state == State::Expired {
            return self.go_on_expired(owner, now());
        }
        if self.state == State::None && self.is_limited() {
            self.begin(now());
        }
        true
    }

    #[cold]
    fn go_on_expired(&mut self, owner: Owner, now: Tick) -> bool {
        let ours = owner == Owner::Future || now <= self.since + KEPT_MS;
        let untimed = self.untimed;
        self.end();
        self.untimed = untimed;
        if !ours && self.is_limited() {
            self.begin(now);
        }
        !ours
    }

    /// A poll of a wait that is not to expire.
    pub(super) fn go_on_exempt(&mut self) {
        self.end();
        self.exempt = true;
    }

    /// Whether no wait is under way, nor the end of one to be told.
    #[inline]
    pub(super) fn is_none(&self) -> bool {
        self.state == State::None
    }

    /// The wait is over, for whatever reason.
    #[inline]
    pub(super) fn end(&mut self) {
        self.state = State::None;
        (self.untimed, self.prolonged) = (false, false);
    }

    /// When the wait that is under way expires; never if none is.
    #[inline]
    pub(super) fn until(&self) -> Tick {
        if self.state != State::Waiting {
            return NEVER;
        }
        // A tick more, since the wait began somewhere within one.
        let timeout = match self.timeout() {
            Some(timeout) if !self.untimed => self.since + timeout + 1,
            _ => NEVER,
        };
        timeout.min(self.deadline)
    }

    /// Expires the wait, which is due.
    pub(super) fn expire(&mut self, now: Tick) {
        self.state = State::Expired;
        self.prolonged = false;
        self.since = now;
    }

    /// The poller has looked too late, and does not know what the peer would have taken: begins the wait's period once more,
    /// unless that was done already, or a deadline has passed. Says whether it did.
    pub(super) fn prolong(&mut self, now: Tick) -> bool {
        let timed = self.timeout().is_some() && !self.untimed;
        let may = timed && !self.prolonged && self.deadline > now;
        if may {
            self.prolonged = true;
            self.since = now;
        }
        may
    }

    /// The peer goes on: the next delay of the poller is forgiven, too.
    #[inline]
    pub(super) fn progressed(&mut self) {
        self.prolonged = false;
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
        if !self.exempt && self.state == State::None && self.is_limited() {
            self.begin(now);
        }
    }

    fn begin(&mut self, now: Tick) {
        self.state = State::Waiting;
        self.since = now;
    }

    fn is_limited(&self) -> bool {
        (self.timeout != NO_TIMEOUT && !self.untimed) || self.deadline != NEVER
    }

    pub(super) fn timeout(&self) -> Option<Tick> {
        (self.timeout != NO_TIMEOUT).then_some(Tick::from(self.timeout))
    }
}

/// How long no byte may move while a connection waits for its peer. What passes while it waits for something else, or for
/// nothing, does not count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    /// In ticks; `NO_TIMEOUT` for none.
    timeout: u32,
    counts: bool,
    /// It was begun anew, since the poller was late.
    prolonged: bool,
    /// When a byte last moved, and later by what did not count since.
    from: Tick,
    /// Since when it does not count.
    stopped: Tick,
}

impl Idle {
    pub(super) fn new(timeout: Option<Duration>, now: Tick) -> Idle {
        Idle {
            timeout: few_ticks(timeout),
            counts: false,
            prolonged: false,
            from: now,
            stopped: now,
        }
    }

    #[inline]
    pub(super) fn is_limited(&self) -> bool {
        self.timeout != NO_TIMEOUT
    }

    pub(super) fn timeout(&self) -> Option<Tick> {
        self.is_limited().then_some(Tick::from(self.timeout))
    }

    /// A byte has moved.
    pub(super) fn moved(&mut self, now: Tick) {
        self.from = self.from.max(now);
        self.stopped = self.stopped.max(now);
        self.prolonged = false;
    }

    /// The poller has looked too late, and does not know when bytes have moved that went out meanwhile: begins the period
    /// once more, unless that was done already. Says whether it did.
    pub(super) fn prolong(&mut self, now: Tick) -> bool {
        let may = !self.prolonged;
        if may {
            (self.prolonged, self.from) = (true, now);
        }
        may
    }

    /// Whether the connection waits for its peer, from now on.
    pub(super) fn count(&mut self, counts: bool, now: Tick) {
        if counts == self.counts {
            return;
        }
        self.counts = counts;
        if counts {
            self.from += now.saturating_sub(self.stopped);
        } else {
            // What is said late, as of an earlier time, takes nothing back.
            self.stopped = now.max(self.from);
        }
    }

    pub(super) fn counts(&self) -> bool {
        self.counts
    }

    /// Sets the timeout. If there was none, nobody has looked at what counted.
    pub(super) fn set_timeout(&mut self, timeout: Option<Duration>, counts: bool, now: Tick) {
        if !self.is_limited() {
            *self = Idle { counts, ..Idle::new(None, now) };
        }
        self.timeout = few_ticks(timeout);
    }

    /// When the connection has been idle for too long; never if that does not count now.
    #[inline]
    pub(super) fn until(&self) -> Tick {
        if !self.counts || !self.is_limited() {
            return NEVER;
        }
        self.from + Tick::from(self.timeout) + 1
    }
}

fn few_ticks(timeout: Option<Duration>) -> u32 {
    let ticks = |timeout: Duration| u32::try_from(timeout.as_nanos().div_ceil(1_000_000)).ok();
    // Rounded up, so that nothing expires too early.
    timeout.and_then(ticks).unwrap_or(NO_TIMEOUT)
}
