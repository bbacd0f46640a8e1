//! What is known of one connection: the peer and the wire on one side, the user on the other, and what must hold
//! between them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

use duopoll_core::{Deregister, Limits};

use crate::clock::Micros;
use crate::rng::Pattern;

/// How long a closed connection may take to send what was flushed, unless it has a write timeout.
pub(crate) const CLOSE_PATIENCE: Micros = 10_000_000;
/// How long it waits for the peer's FIN, when its own is out.
const CLOSE_LINGERS: Micros = 1_000_000;
/// How late the poller may learn of a close, or wake for what it has to do then.
const LATE: Micros = 70_000;
/// For how long the poller may be held up.
pub(crate) const STALL_MAX: Micros = 2_000_000;
const TICK: Micros = 1_000;
const NEVER: Micros = Micros::MAX;

/// What the peer does next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PeerAction {
    Send(u64),
    Read(u64),
    /// Reads whatever comes from now on.
    ReadAll,
    Fin,
    /// Breaks the connection with this errno. What it had sent before is lost, or can still be received.
    Reset {
        errno: i32,
        keep: bool,
    },
}

/// A connect under way: when it ends, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connect {
    pub(crate) at: Micros,
    pub(crate) errno: Option<i32>,
}

/// One connection.
pub(crate) struct Link {
    pub(crate) id: usize,
    pub(crate) incoming: Pattern,
    pub(crate) outgoing: Pattern,
    /// What was handed over, where several send: in whatever order.
    pub(crate) handed_over: RefCell<Option<Vec<u8>>>,
    pub(crate) limits: Limits,
    /// What the peer and the kernel can hold of what is sent.
    pub(crate) room_bytes: u64,
    /// How long after our FIN the peer sends its own, if it does.
    pub(crate) answers: Option<Micros>,
    /// Operations fail now and then for no reason of the peer's.
    pub(crate) faulty: bool,
    /// The engine makes a mistake with it.
    pub(crate) mistaken: bool,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Sends without a copy, of which no notice was given.
    pub(crate) pinned: u32,
    /// Since it was seen to be closed, with some of them.
    pub(crate) pinned_since: Option<Micros>,
    /// It was ended by a reset that its user had not asked for.
    pub(crate) cut: bool,
    pub(crate) script: VecDeque<(Micros, PeerAction)>,
    pub(crate) connect: Option<Connect>,
    /// When the driver was told of the end of the connect.
    pub(crate) connected_at: Micros,

    // The receiving direction. Offsets count from the beginning of the stream.
    /// The peer has sent up to here.
    pub(crate) arrived: u64,
    /// When, and up to where.
    arrivals: Vec<(Micros, u64)>,
    /// What had arrived when the server began to shut down.
    pub(crate) due: u64,
    pub(crate) fin: bool,
    pub(crate) reset: Option<i32>,
    /// When the peer ended, or broke it.
    ended_at: Option<Micros>,
    pub(crate) paused: bool,
    pub(crate) paused_at: Micros,
    /// When it was last told to go on.
    pub(crate) resumed: Micros,
    /// A request is being handled.
    pub(crate) within: bool,
    /// Acknowledged to the driver up to here, and in the end the FIN or an error.
    pub(crate) delivered: u64,
    pub(crate) ended: bool,
    pub(crate) failed: Option<i32>,
    /// The user has read up to here.
    pub(crate) read: u64,

    // The sending direction.
    /// The user has written up to here, and flushed up to there.
    pub(crate) staged: u64,
    pub(crate) flushed: u64,
    /// Acknowledged to the driver up to here, but for what is kept back, and in the end an error.
    pub(crate) sent: u64,
    /// Bytes whose acknowledgement is kept back.
    pub(crate) kept: u64,
    pub(crate) send_failed: Option<i32>,
    /// It was a send that failed.
    pub(crate) send_refused: bool,
    pub(crate) peer_read: u64,
    pub(crate) peer_reads_all: bool,
    pub(crate) fin_out: bool,

    // The life.
    pub(crate) finished: bool,
    pub(crate) reader_gone: bool,
    pub(crate) writer_gone: bool,
    pub(crate) closed: Option<Micros>,
    /// How long it may take then to send what was flushed.
    pub(crate) patience: Micros,
    /// At most so long: the write timeout may be changed before the poller learns of the close.
    pub(crate) patience_most: Micros,
    /// Closed, and with nothing left to send, since the turn that began then.
    lingers: Option<Micros>,
    /// It was closed before the connect had ended.
    pub(crate) cancelled: bool,
    pub(crate) aborted: bool,
    /// Its poller ends.
    pub(crate) wound_up: bool,
    pub(crate) deregistered: Option<Deregister>,
    pub(crate) released: bool,

    // Time.
    /// When a byte last moved, and the shortest idle timeout since.
    pub(crate) active: Micros,
    pub(crate) idle: Option<Micros>,
    pub(crate) idle_shortest: Option<Micros>,
    /// How long it has waited for its peer since, in how many pieces, and up to when that was counted.
    waited: Micros,
    /// The same since the last turn before which the poller was held up: the period may have begun once more then.
    pub(crate) waited_since_late: Micros,
    waits: u64,
    counted: Micros,
    was_waiting: bool,
    pub(crate) idle_ended: bool,
    /// When the driver was told that there is room.
    pub(crate) told_of_room: Micros,
    /// The last turn before which the poller was held up: a writer's wait may have begun once more then.
    held_up: Micros,
    /// When it was told of bytes, or an end.
    pub(crate) told: Micros,
    pub(crate) reading: Direction,
    pub(crate) writing: Direction,
}

/// The limits and the wait of one direction.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    pub(crate) timeout: Option<Micros>,
    pub(crate) deadline: Option<Micros>,
    changed: Micros,
    /// Of those who send there may be several.
    pub(crate) waits: Vec<Wait>,
}

/// What a task waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// The byte before this offset.
    Bytes(u64),
    /// As `Bytes`, and each piece that comes begins a wait of its own.
    Delimiter(u64),
    /// As `Bytes`, and no timeout counts.
    Request(u64),
    /// No more unsent bytes than this.
    Unsent(u64),
    Connected,
    Detached,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) task: usize,
    pub(crate) goal: Goal,
    began: Micros,
    /// The last poll, and what had been delivered by then.
    polled: Micros,
    seen: u64,
    /// The first poll since a limit was changed while it waited.
    polled_since: Option<Micros>,
    /// The earliest time at which any limit that was in force since could have ended it.
    earliest: Micros,
}

impl Direction {
    /// The timeout, where it counts: a connect has none.
    fn timeout_of(&self, goal: &Goal) -> Option<Micros> {
        self.timeout.filter(|_| !matches!(goal, Goal::Connected))
    }

    fn earliest(&self, goal: &Goal, began: Micros) -> Micros {
        let timeout = self.timeout_of(goal).map_or(NEVER, |timeout| began + timeout);
        timeout.min(self.deadline.unwrap_or(NEVER))
    }

    /// When the wait must be over, if that is so.
    fn latest(&self, wait: &Wait, active: Micros, prolonged: Micros, held: Micros) -> Micros {
        // A timeout that is set meanwhile may count from then, and one that a poller looked at too late from that time.
        // Of one that is set between its wake-up and its poll, a wait without one learns by that.
        let mut from = wait.began.max(self.changed).max(prolonged);
        from = from.max(wait.polled_since.unwrap_or(0));
        if matches!(wait.goal, Goal::Delimiter(_)) {
            from = from.max(active).max(wait.polled);
        }
        let timeout =
            self.timeout_of(&wait.goal).map_or(NEVER, |timeout| from + timeout + 2 * TICK);
        // Of a deadline that had passed when the wait began, the poller learns in its next turn.
        let deadline =
            self.deadline.map_or(NEVER, |deadline| (deadline + TICK).max(wait.began + 1));
        // What had come before is waited for, and then it is looked at again.
        timeout.min(deadline).max(held + 2 * TICK)
    }

    pub(crate) fn begin(&mut self, task: usize, goal: Goal, now: Micros, seen: u64) -> Wait {
        let earliest =
            if matches!(goal, Goal::Request(_)) { NEVER } else { self.earliest(&goal, now) };
        let known = self.waits.iter_mut().find(|wait| wait.task == task);
        if let Some(wait) = known {
            (wait.polled, wait.seen) = (now, seen);
            if wait.began < self.changed {
                wait.polled_since.get_or_insert(now);
            }
            return *wait;
        }
        let wait = Wait { task, goal, began: now, polled: now, seen, polled_since: None, earliest };
        self.waits.push(wait);
        wait
    }

    pub(crate) fn wait_of(&self, task: usize) -> Option<Wait> {
        self.waits.iter().find(|wait| wait.task == task).copied()
    }

    pub(crate) fn end(&mut self, task: usize) {
        self.waits.retain(|wait| wait.task != task);
    }

    /// After a limit was changed.
    pub(crate) fn limit(&mut self, now: Micros) {
        self.changed = now;
        for place in 0..self.waits.len() {
            self.waits[place].polled_since = None;
            let wait = self.waits[place];
            if !matches!(wait.goal, Goal::Request(_)) {
                let earliest = self.earliest(&wait.goal, wait.began);
                self.waits[place].earliest = wait.earliest.min(earliest);
            }
        }
    }
}

impl Link {
    pub(crate) fn new(id: usize, seed: u64, limits: Limits, now: Micros, plan: Plan) -> Link {
        let micros = |duration: std::time::Duration| duration.as_micros() as Micros;
        let direction = |timeout: Option<std::time::Duration>| Direction {
            timeout: timeout.map(micros),
            ..Direction::default()
        };
        let idle = limits.idle_timeout.map(micros);
        let state = State {
            script: plan.script,
            connect: plan.connect,
            peer_reads_all: plan.reads_all,
            active: now,
            idle,
            idle_shortest: idle,
            reading: direction(limits.read_timeout),
            writing: direction(limits.write_timeout),
            ..State::default()
        };
        Link {
            id,
            incoming: Pattern(seed),
            outgoing: Pattern(!seed),
            handed_over: RefCell::default(),
            limits,
            room_bytes: plan.room_bytes,
            answers: plan.answers,
            faulty: plan.faulty,
            mistaken: plan.mistaken,
            state: RefCell::new(state),
        }
    }

    pub(crate) fn state(&self) -> std::cell::RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// These are the bytes that are to be sent from there on.
    pub(crate) fn check_sent(&self, offset: u64, bytes: &[u8]) {
        match &*self.handed_over.borrow() {
            Some(all) => {
                let from = offset as usize;
                let good = all.get(from..from + bytes.len()) == Some(bytes);
                assert!(good, "link {}: sending: wrong bytes from {offset} on", self.id);
            }
            None => self.outgoing.check(offset, bytes, "sending"),
        }
    }

    /// Does what the peer was to do by now.
    pub(crate) fn run_peer(&self, now: Micros) {
        let mut state = self.state();
        while state.script.front().is_some_and(|(at, _)| *at <= now) {
            let Some((at, action)) = state.script.pop_front() else { return };
            // Before the connect has ended nothing arrives.
            let at = state.connect.map_or(at, |connect| at.max(connect.at));
            state.act(action, at);
        }
    }

    /// There is something to receive: bytes, the end, or an error.
    pub(crate) fn has_input(&self) -> bool {
        let state = self.state();
        !state.ended
            && state.failed.is_none()
            && (state.delivered < state.arrived || state.fin || state.reset.is_some())
    }

    /// Bytes that have come and were not received.
    pub(crate) fn waiting(&self) -> u64 {
        let state = self.state();
        state.arrived - state.delivered
    }

    /// Bytes that could be sent now.
    pub(crate) fn room(&self) -> u64 {
        self.room_in(&self.state())
    }

    fn has_room(&self, state: &State) -> bool {
        self.room_in(state) > 0
    }

    fn room_in(&self, state: &State) -> u64 {
        if state.peer_reads_all {
            return u64::MAX;
        }
        self.room_bytes.saturating_sub(state.sent - state.peer_read)
    }

    /// A flush would be taken over.
    pub(crate) fn output_is_open(&self) -> bool {
        let state = self.state();
        let ended = state.output_is_over() || state.wound_up;
        !ended && !state.finished && state.closed.is_none()
    }

    /// A half is dropped; with the second the connection is closed.
    pub(crate) fn drop_half(&self, reads: bool, now: Micros) {
        let mut state = self.state();
        state.reader_gone |= reads;
        state.writer_gone |= !reads;
        let both = state.reader_gone && state.writer_gone;
        drop(state);
        if both {
            self.close(now);
        }
    }

    /// Both halves are gone, or somebody has closed it.
    pub(crate) fn close(&self, now: Micros) {
        let mut state = self.state();
        if state.closed.is_none() {
            state.closed = Some(now);
            state.cancelled = state.connect.is_some();
            if state.cancelled {
                mark!("closed before it was connected");
            }
            state.patience = state.writing.timeout.unwrap_or(CLOSE_PATIENCE);
            state.patience_most = state.patience;
        }
        state.count(now);
    }

    /// What the end of a registration may be for.
    pub(crate) fn deregistered(&self, how: Deregister, by_force: bool, now: Micros) {
        let mut state = self.state();
        assert_eq!(state.deregistered, None, "link {}: ended twice", self.id);
        state.count(now);
        let unsent = state.flushed > state.sent - state.kept && !state.fin_out;
        // Nothing of what was flushed before the connect had ended is sent if there is no later.
        let over = state.fin_out || state.send_failed.is_some() || state.is_broken();
        let cut = !over
            && (unsent || (state.within && state.closed.is_none() && state.connect.is_none()));
        // A send has failed, and what was flushed is not all on its way.
        let refused = state.send_failed.is_some() && state.flushed > state.sent;
        let reset = how == Deregister::Abort && !state.aborted;
        state.cut = reset && !refused && (cut || state.pinned > 0);
        if (cut || refused) && matches!(how, Deregister::Shutdown | Deregister::Close) {
            panic!("link {}: a cut that looks like the end: {state:?}", self.id);
        }
        if state.cut {
            mark!("cut off with a reset");
        }
        let how = match how {
            // What is cut off, or still read from by the kernel, is ended by a reset.
            Deregister::Abort if state.cut => {
                // Idle, unless it was closed and has used up its patience.
                let late = |closed| now + TICK > closed + state.patience;
                if state.cancelled || state.closed.is_some_and(late) {
                    Deregister::Close
                } else {
                    Deregister::Shutdown
                }
            }
            Deregister::Abort if reset && refused && !state.cancelled => match state.closed {
                Some(_) => Deregister::Close,
                None => Deregister::Shutdown,
            },
            // Its users hold on to the socket.
            Deregister::Shutdown if state.closed.is_some() || state.wound_up => Deregister::Close,
            how => how,
        };
        state.deregistered = Some(how);
        match how {
            Deregister::Shutdown if !by_force => {
                // Nobody asked, so it was idle.
                let Some(idle) = state.idle_shortest else {
                    panic!("link {}: ended as idle without an idle timeout", self.id);
                };
                let waited = state.waited + state.waits * TICK;
                assert!(waited >= idle, "link {}: it was not idle: {state:?}", self.id);
                let late = state.arrived > state.delivered && !state.paused;
                let late = late && state.resumed < now;
                let full = state.delivered - state.read >= self.limits.input_high_bytes as u64;
                assert!(
                    !late || full || state.reader_gone,
                    "link {}: bytes had come: {state:?}",
                    self.id
                );
                state.idle_ended = true;
                mark!("ended as idle");
            }
            Deregister::Close if !by_force => {
                let Some(closed) = state.closed else { panic!("link {}: never closed", self.id) };
                let over = state.output_is_over() || state.fin_out;
                let late = now + TICK > closed + state.patience;
                assert!(over || late, "link {}: closed before all was sent: {state:?}", self.id);
            }
            Deregister::Abort => {
                // Where receiving has failed, nobody knows what became of a send that was under way.
                let asked = state.aborted || state.cancelled || state.failed.is_some();
                assert!(asked, "link {}: reset unasked: {state:?}", self.id);
            }
            _ => {}
        }
    }

    /// A call of the reader's ended with an error. `have` is where its buffer ends, `wanted` what it waited for.
    pub(crate) fn check_read_error(
        &self,
        error: &io::Error,
        have: u64,
        wanted: Option<u64>,
        wait: &Wait,
        now: Micros,
    ) {
        let state = self.state();
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::TimedOut, None) => {
                assert!(
                    now >= wait.earliest,
                    "link {}: {wait:?} timed out early: {state:?}",
                    self.id
                );
                // What had come before the deadline counts, however late anybody looked.
                let had = state.arrived_by(wait.earliest);
                let came = wanted.is_some_and(|wanted| had >= wanted);
                let ended = state.ended_at.is_some_and(|at| at <= wait.earliest);
                let paused = state.paused || state.resumed >= wait.earliest;
                let good = paused || state.connect.is_some() || (!came && !ended);
                assert!(good, "link {}: {wait:?} timed out over what had come: {state:?}", self.id);
                return;
            }
            (io::ErrorKind::UnexpectedEof, None) => {
                assert!(state.ended, "link {}: an end that did not come: {state:?}", self.id);
                let short = wanted.is_none_or(|wanted| wanted > have);
                assert!(short, "link {}: an end instead of bytes: {state:?}", self.id);
            }
            (io::ErrorKind::NotConnected, None) => assert!(state.closed.is_some(), "{state:?}"),
            (_, Some(errno)) => {
                // The kernel may have told the send of it, and the reader of an end.
                let told = [libc::ECONNRESET, libc::ETIMEDOUT];
                let send = state.send_failed.filter(|errno| state.ended && told.contains(errno));
                state.check_errno(errno, state.failed.or(send));
            }
            _ => panic!("link {}: an unexpected error: {error:?}", self.id),
        }
        let by_us = state.closed.is_some() || state.wound_up || state.aborted;
        if !by_us && state.deregistered.is_none() {
            // Everything that came before the end is there.
            assert_eq!(have, state.delivered, "link {}: lost at the end: {state:?}", self.id);
        }
    }

    pub(crate) fn check_write_error(&self, error: &io::Error, wait: &Wait, now: Micros) {
        let state = self.state();
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::TimedOut, None) => {
                assert!(
                    now >= wait.earliest,
                    "link {}: {wait:?} timed out early: {state:?}",
                    self.id
                );
            }
            (io::ErrorKind::NotConnected, None) => {
                assert!(state.closed.is_some() || state.finished, "{state:?}");
            }
            (_, Some(errno)) => state.check_errno(errno, state.send_failed),
            _ => panic!("link {}: an unexpected error: {error:?}", self.id),
        }
    }

    /// At the end of a turn that began at `turn`: whoever sleeps has a reason to.
    pub(crate) fn check_sleepers(
        &self,
        turn: Micros,
        now: Micros,
        longest: Micros,
        late: Option<Micros>,
        draining: bool,
        asleep: impl Fn(usize) -> bool,
    ) {
        let mut state = self.state();
        let over = state.fin_out || state.output_is_over();
        let pinned = state.pinned > 0 && state.closed.is_some() && {
            let since = *state.pinned_since.get_or_insert(turn);
            turn < since.max(state.active) + 2 * state.patience_most + LATE + 2 * longest
        };
        if state.closed.is_some() && state.deregistered.is_none() && over && !pinned {
            let peer_is_done = state.ended || state.failed.is_some();
            assert!(!peer_is_done, "link {}: both have ended, and it stays: {state:?}", self.id);
            let since = *state.lingers.get_or_insert(turn);
            // Once more, if the poller was held up.
            let latest = since + 2 * CLOSE_LINGERS + 2 * TICK + 2 * longest;
            assert!(turn < latest, "link {}: closed, and it stays: {state:?}", self.id);
        }
        // A socket that is given away waits for notices, and for nothing else.
        let leaves = state.pinned > 0
            && state.reading.waits.iter().any(|wait| matches!(wait.goal, Goal::Detached));
        // What had come, or could go, goes first.
        let unread = state.arrived > state.delivered
            || (state.ended_at.is_some() && !state.ended && state.failed.is_none());
        let unsent = state.flushed > state.sent - state.kept;
        let room = unsent && (self.has_room(&state) || state.kept > 0 || state.reset.is_some());
        let room = room || state.connect.is_some_and(|connect| connect.at <= now);
        state.count(now);
        if late == Some(turn) || now - turn >= 10 * TICK {
            state.waited_since_late = 0;
            state.held_up = now;
        }
        if let (Some(idle), None, None, false) =
            (state.idle, state.closed, state.deregistered, leaves || unread || room)
        {
            let latest = idle + 2 * TICK + state.waits * TICK + (now - turn);
            let over = state.was_waiting && state.waited_since_late >= latest;
            let held = turn < state.told.max(state.told_of_room) + 2 * TICK;
            assert!(!over || held, "link {}: idle at {turn}: {state:?}", self.id);
        }
        let reading = state.reading.waits.iter().map(|wait| (wait, &state.reading, true));
        let writing = state.writing.waits.iter().map(|wait| (wait, &state.writing, false));
        for (wait, direction, reads) in reading.chain(writing) {
            if !asleep(wait.task) {
                continue;
            }
            let over = match wait.goal {
                Goal::Bytes(to) | Goal::Delimiter(to) | Goal::Request(to) => {
                    let handled = state.delivered == state.read && state.delivered >= state.due;
                    let between = draining && handled;
                    state.delivered >= to
                        || state.ended
                        || state.failed.is_some()
                        || state.closed.is_some()
                        || state.is_broken()
                        || (between && matches!(wait.goal, Goal::Request(_)))
                }
                Goal::Unsent(most) => {
                    state.unsent() <= most || state.output_is_over() || state.deregistered.is_some()
                }
                Goal::Connected => {
                    state.connect.is_none() || state.closed.is_some() || state.is_broken()
                }
                Goal::Detached => state.released,
            };
            assert!(!over, "link {}: nobody woke {wait:?}: {state:?}", self.id);
            // What is closed has a patience of its own.
            let limited = !matches!(wait.goal, Goal::Request(_) | Goal::Detached);
            let connects = state.connect.is_some_and(|connect| connect.at <= now);
            let connects = connects || (state.paused && state.paused_at + 2 * TICK > turn);
            let held = connects || if reads { unread && !state.paused } else { room };
            if limited && state.closed.is_none() && !held {
                let (prolonged, held) = if reads {
                    (
                        state.connected_at,
                        if state.told > 0 { state.told.max(state.active) } else { 0 },
                    )
                } else {
                    // The end of the connect begins a wait once more.
                    let anew = if state.connected_at >= wait.began { wait.polled } else { 0 };
                    (anew.max(state.held_up), state.told_of_room)
                };
                let latest = direction.latest(wait, state.active, prolonged, held);
                assert!(
                    turn < latest,
                    "link {}: {wait:?} is over time at {turn}: {state:?}",
                    self.id
                );
            }
        }
    }

    /// When no more can happen unless somebody does something: all that could have been done is done.
    pub(crate) fn check_rest(&self) {
        let state = self.state();
        if state.deregistered.is_some() {
            assert!(state.released, "link {}: never released", self.id);
            return;
        }
        assert!(state.closed.is_none(), "link {}: closed, and still there: {state:?}", self.id);
        assert!(state.connect.is_none(), "link {}: still connecting", self.id);
        drop(state);
        let (has_input, room) = (self.has_input(), self.room());
        let state = self.state();
        if has_input {
            let full = state.delivered - state.read >= self.limits.input_high_bytes as u64;
            let good = full && !state.reader_gone && state.reading.waits.is_empty();
            let good = good || (state.paused && state.closed.is_none());
            assert!(good, "link {}: nobody receives what has come: {state:?}", self.id);
        }
        if room > 0 && !state.output_is_over() {
            assert_eq!(state.sent, state.flushed, "link {}: unsent: {state:?}", self.id);
            let waits = !state.writing.waits.is_empty();
            assert!(state.kept == 0 || !waits, "link {}: kept from the writer: {state:?}", self.id);
            let fin_due = state.finished || state.writer_gone;
            assert!(state.fin_out || !fin_due, "link {}: the FIN is missing: {state:?}", self.id);
        }
    }

    /// When the world has ended.
    pub(crate) fn check_end(&self) {
        let state = self.state();
        assert!(state.released, "link {}: never released", self.id);
        assert!(state.reading.waits.is_empty() && state.writing.waits.is_empty());
        if state.fin_out {
            assert_eq!(state.sent, state.flushed, "link {}: the FIN was early: {state:?}", self.id);
        }
    }
}

impl State {
    fn act(&mut self, action: PeerAction, at: Micros) {
        if self.reset.is_some() {
            return;
        }
        match action {
            PeerAction::Send(n) if !self.fin => {
                self.arrived += n;
                self.arrivals.push((at, self.arrived));
            }
            PeerAction::Send(_) => {}
            PeerAction::Read(n) => self.peer_read = self.sent.min(self.peer_read + n),
            PeerAction::ReadAll => self.peer_reads_all = true,
            PeerAction::Fin => {
                self.fin = true;
                self.ended_at.get_or_insert(at);
            }
            PeerAction::Reset { errno, keep } => {
                self.reset = Some(errno);
                self.ended_at.get_or_insert(at);
                if !keep {
                    self.arrived = self.delivered;
                }
            }
        }
    }

    /// What had arrived by a time.
    fn arrived_by(&self, at: Micros) -> u64 {
        let before = self.arrivals.iter().rev().find(|(when, _)| *when <= at);
        before.map_or(0, |(_, arrived)| *arrived)
    }

    /// Counts how long it has waited for its peer, for what is true from now on.
    pub(crate) fn count(&mut self, now: Micros) {
        if self.was_waiting {
            self.waited += now - self.counted;
            self.waited_since_late += now - self.counted;
        }
        self.counted = now;
        let reads = self.reading.waits.iter().any(|wait| match wait.goal {
            Goal::Bytes(to) | Goal::Request(to) => self.delivered < to,
            Goal::Delimiter(_) => self.delivered == wait.seen,
            Goal::Unsent(_) | Goal::Connected | Goal::Detached => false,
        });
        let reads = reads && !self.paused && !self.ended && self.failed.is_none();
        let sends = self.flushed > self.sent - self.kept;
        let sends = sends && !self.output_is_over();
        let waits = (reads || sends)
            && self.connect.is_none()
            && self.closed.is_none()
            && self.deregistered.is_none();
        self.waits += u64::from(waits && !self.was_waiting);
        self.was_waiting = waits;
    }

    /// As the driver knows it.
    pub(crate) fn unsent(&self) -> u64 {
        self.flushed - self.sent + self.kept
    }

    /// Nothing goes either way any more.
    fn is_broken(&self) -> bool {
        matches!(self.deregistered, Some(Deregister::Abort | Deregister::Shutdown)) || self.aborted
    }

    /// Nothing is sent any more.
    pub(crate) fn output_is_over(&self) -> bool {
        self.send_failed.is_some() || self.is_broken() || self.cancelled
    }

    /// It was closed, and what was flushed could not be sent in time.
    fn is_forced(&self) -> bool {
        self.deregistered == Some(Deregister::Close) && (!self.fin_out || self.cut)
    }

    fn check_errno(&self, errno: i32, reported: Option<i32>) {
        let good = Some(errno) == reported
            || (errno == libc::ECONNABORTED
                && (self.deregistered.is_some() || self.aborted || self.wound_up))
            || (errno == libc::ETIMEDOUT && (self.idle_ended || self.is_forced() || self.cut))
            || (errno == libc::ECANCELED && self.cancelled);
        assert!(good, "errno {errno} out of nowhere: {self:?}");
    }

    /// An error that ends both directions was acknowledged.
    pub(crate) fn fail(&mut self, errno: i32) {
        self.failed.get_or_insert(errno);
        self.send_failed.get_or_insert(errno);
    }

    /// Bytes have moved.
    pub(crate) fn moved(&mut self, now: Micros) {
        self.active = now;
        self.idle_shortest = self.idle;
        self.count(now);
        (self.waited, self.waited_since_late, self.waits) = (0, 0, 1);
    }

    pub(crate) fn set_idle(&mut self, idle: Option<Micros>, now: Micros) {
        self.count(now);
        if self.idle.is_none() {
            (self.waited, self.waited_since_late, self.waits) = (0, 0, 1);
        }
        self.idle = idle;
        self.idle_shortest = match (self.idle_shortest, idle) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}

/// What the other side of a connection will do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) script: VecDeque<(Micros, PeerAction)>,
    pub(crate) connect: Option<Connect>,
    pub(crate) reads_all: bool,
    pub(crate) room_bytes: u64,
    pub(crate) answers: Option<Micros>,
    pub(crate) faulty: bool,
    pub(crate) mistaken: bool,
}
