//! A poller: one thread, with an engine, its connections and their tasks.
//!
//! A handle and its poller name each other, so both types stand here; what a handle does is in `handle`.

mod handle;
pub(crate) mod shutdown;
mod spec;
mod thread_start;

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use duopoll_core::task::Executor;
use duopoll_core::{
    Accepted, Clock, Command, Control, Driver, Group, Kind, Limits, Mailbox, MemoryLevel, Poll,
    Readiness, Tick, Token, contain, report, syscalls, timers,
};
use rustix::event::PollFlags;

use crate::clock::PollerClock;
use crate::connection::Connection;
use crate::engine::{AnyPoll, EngineReport};
use crate::memory::OnLevel;
pub(crate) use crate::poller::handle::{Coming, deadlock, over};
use crate::poller::shutdown::{Backlog, Shutdowns, TEARDOWN};
pub(crate) use crate::poller::spec::PollerSpec;
pub(crate) use crate::poller::thread_start::ThreadStart;
use crate::stats::{self, Published, Stats};
use crate::tcp::unacknowledged_bytes;
use crate::timings::{Measured, Slow, Stopwatch};
use crate::trace;

/// How long a poller that ends goes on sending what was flushed before, until the peer's kernel has it. What the kernel has
/// not taken by then ends with a reset.
const END_SEND: Duration = Duration::from_secs(1);

/// After so many turns in a row in which nothing was done but what other threads had left, the next waits a moment. With 64 tasks
/// on 4 threads that send 40 bytes each over one connection, that makes 0.03 to 0.04 system calls a message of 0.06 to 0.2.
const GATHERINGS: u32 = 2;
const GATHERING: Duration = Duration::from_micros(20);

/// After so many turns in which nothing happened a clock that stands is moved.
const QUIET_TURNS: u32 = 3;
/// After so many turns in a row in which tasks were ready a clock is moved all the same, if somebody moves it.
const BUSY_TURNS: u32 = 64;

/// Whose a poller is: what knows all that belong together.
type Owner = Weak<dyn Any + Send + Sync>;

/// What another thread has a poller do.
type Call = Box<dyn FnOnce(&mut Poller) + Send>;

/// What becomes of the connections that a listener accepts, and of the listener.
pub(crate) trait Acceptor: Send + Sync {
    /// A connection was accepted, on this poller.
    fn accepted(self: Arc<Self>, poller: &mut Poller, listener: Token, socket: OwnedFd);

    /// Whether nothing is to be accepted any more.
    fn is_over(&self) -> bool {
        false
    }

    /// A poller listens.
    fn listens(&self, poller: &Arc<Handle>, listener: Token);

    /// The poller that listened has ended by itself: another one that is to go on, if there is any.
    fn successor(&self) -> Option<Arc<Handle>>;

    /// The poller that listened has ended, and nobody goes on.
    fn ended(&self);
}

/// What a poller runs for, if it is not for ever.
pub(crate) trait Main {
    /// Whether it can go on.
    fn is_ready(&self) -> bool;

    /// Goes on, if it can. Whether it is over, and the poller with it.
    fn go_on(&mut self) -> bool;
}

/// For ever, until it is stopped.
impl Main for () {
    fn is_ready(&self) -> bool {
        false
    }

    fn go_on(&mut self) -> bool {
        false
    }
}

/// The way to a poller, from any thread.
///
/// In cache lines of its own, two at a time, as processors fetch them: it is written each turn, and no other poller is to wait for that.
#[repr(align(128))]
pub(crate) struct Handle {
    mailbox: Arc<Mailbox>,
    executor: Arc<Executor>,
    clock: PollerClock,
    /// None once the poller has ended.
    calls: Mutex<Option<Vec<Call>>>,
    report: EngineReport,
    /// Connections that it has, as of the last turn or the last one that was opened, and those that are on their way to it.
    load: AtomicUsize,
    /// It takes no connection any more.
    ended: AtomicBool,
    /// As of the end of the last turn.
    published: Published,
    /// If it measures.
    measured: Option<Arc<Measured>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Whose it is.
    owner: OnceLock<Owner>,
}

/// The poller itself, on its own thread.
pub(crate) struct Poller {
    handle: Arc<Handle>,
    engine: AnyPoll,
    driver: Driver,
    listeners: Vec<ListenerEntry>,
    clock: PollerClock,
    commands: Vec<Command>,
    accepted: Vec<Accepted>,
    stats: Stats,
    /// Open connections that its load counts.
    counted: usize,
    shutdowns: Shutdowns,
    stopping: bool,
    /// It ends when nobody uses the connections any more that keep it.
    retiring: bool,
    /// Dropped with it: somebody waits for its end.
    mourners: Vec<shutdown::Token>,
    /// It was logged that accepting is put off.
    backoff_logged: bool,
    /// Turns in a row in which nothing was done but what other threads had left.
    gatherings: u32,
    /// What was done by the last of them.
    done_before: u64,
    /// Turns in a row in which nothing happened, while the clock stands.
    quiet_turns: u32,
    /// Turns in a row in which tasks were ready.
    busy_turns: u32,
    on_memory_level: Option<OnLevel>,
    stopwatch: Option<Box<Stopwatch>>,
    /// Dropped when it has run.
    guard: Option<Box<dyn Any>>,
}

/// A listener of this poller.
struct ListenerEntry {
    token: Token,
    group: Group,
    acceptor: Arc<dyn Acceptor>,
    /// It accepts no more.
    leaving: bool,
    /// Dropped with the entry: somebody waits for that.
    _done: Option<shutdown::Token>,
}

thread_local! {
    /// The poller that runs on this thread.
    static CURRENT: RefCell<Option<Arc<Handle>>> = const { RefCell::new(None) };
}

impl Poller {
    /// A poller for the calling thread, which is to [`run`](Poller::run) it.
    pub(crate) fn new(spec: &PollerSpec) -> io::Result<Poller> {
        let PollerSpec { choice, on_thread_start, memory, timing, pool } = spec;
        let mut guard = None;
        let start = on_thread_start.as_ref();
        if !contain("on_thread_start", || guard = start.map(ThreadStart::call)) {
            return Err(io::Error::other("on_thread_start has panicked"));
        }
        let (engine, report) = AnyPoll::new(*choice, pool.as_ref())?;
        let clock = PollerClock::new();
        let mailbox = Mailbox::new(engine.waker(), Arc::new(clock.clone()));
        let mailbox = Arc::new(match pool {
            Some(pool) => mailbox.with_pool(pool.clone()),
            None => mailbox,
        });
        let mut driver = Driver::new(mailbox.clone());
        driver.set_when_full(memory.when_full);
        #[cfg(feature = "zerocopy")]
        {
            if let Some(reason) = engine.capabilities().zerocopy_refusal {
                mailbox.refuse_zerocopy(reason);
            }
            if let Some(bytes) = choice.pinned_bytes {
                driver.limit_pinned(bytes);
            }
        }
        let stopwatch = Stopwatch::new(*timing);
        let measures = timing.measures.then_some(&stopwatch);
        let handle = Arc::new(Handle {
            executor: Executor::new(mailbox.clone()),
            mailbox: mailbox.clone(),
            clock: clock.clone(),
            calls: Mutex::new(Some(Vec::new())),
            report,
            load: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            published: Published::default(),
            measured: measures.and_then(|stopwatch| Some(stopwatch.as_ref()?.measured())),
            thread: Mutex::new(None),
            owner: OnceLock::new(),
        });
        Ok(Poller {
            handle,
            engine,
            driver,
            listeners: Vec::new(),
            clock,
            commands: Vec::new(),
            accepted: Vec::new(),
            stats: Stats { pollers: 1, ..Stats::default() },
            counted: 0,
            shutdowns: Shutdowns::default(),
            stopping: false,
            retiring: false,
            mourners: Vec::new(),
            backoff_logged: false,
            gatherings: 0,
            done_before: 0,
            quiet_turns: 0,
            busy_turns: 0,
            on_memory_level: memory.on_level.clone(),
            stopwatch,
            guard,
        })
    }

    /// Runs it on the calling thread until it is stopped. What `begin` does comes first.
    pub(crate) fn run(
        mut self,
        begin: impl FnOnce(&mut Poller),
        main: &mut dyn Main,
    ) -> io::Result<()> {
        let _entered = self.handle.mailbox.enter();
        self.handle.executor.open();
        trace::poller_started(self.handle.report.engine, &self.handle.report.tier);
        stats::begin();
        self.publish();
        let previous = CURRENT.replace(Some(self.handle.clone()));
        // Handlers are caught one by one. What panics here is a waker of somebody else's executor, or a bug.
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            begin(&mut self);
            loop {
                self.turn(main)?;
                self.look_at_shutdowns();
                if self.stopping || (self.retiring && self.driver.kept() == 0) {
                    break io::Result::Ok(());
                }
            }
        }));
        let result = match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.stats.failed_pollers = 1;
                report(|| log::error!("a poller ends, since its engine is broken: {error}"));
                Err(error)
            }
            Err(_) => {
                self.stats.failed_pollers = 1;
                report(|| log::error!("a poller ends, since a waker has panicked"));
                Err(io::Error::other("a waker has panicked"))
            }
        };
        let guard = self.guard.take();
        self.tear_down();
        contain("what on_thread_start has left", || drop(guard));
        CURRENT.set(previous);
        trace::poller_ended();
        result
    }

    /// Harvests what the engine has, runs the tasks that it woke, then sends what they flushed.
    fn turn(&mut self, main: &mut dyn Main) -> io::Result<()> {
        let timeout = self.timeout(main.is_ready());
        self.engine.wait(timeout, &mut self.driver)?;
        if self.stopwatch.is_some() {
            self.measure_begin();
        }
        // Before the timers: somebody may have changed what is due.
        self.take_commands();
        self.driver.begin_turn(&mut self.engine);
        if self.driver.stats().accept_backoffs > 0 && !self.backoff_logged {
            self.backoff_logged = true;
            report(|| {
                log::warn!(
                    "accepting is put off: the process or the machine has run out of descriptors or memory"
                );
            });
        }
        if let Some(level) = self.driver.take_memory_level() {
            self.tell_memory_level(level);
        }
        self.take_accepted();

        let executor = self.handle.executor.clone();
        if let Some(stopwatch) = &mut self.stopwatch {
            stopwatch.tasks_begin();
        }
        let ran = executor.run(|| {
            if let Some(slow) = self.stopwatch.as_mut().and_then(|watch| watch.polled()) {
                self.tell_slow(slow);
            }
            if self.handle.mailbox.is_urgent() {
                self.take_commands();
                if let Some(stopwatch) = &mut self.stopwatch {
                    stopwatch.goes_on();
                }
            }
        });
        self.stats.task_polls += ran.polls;
        if ran.polls > 0 || main.is_ready() {
            self.quiet_turns = 0;
        }
        self.stats.handler_panics += ran.panics;
        self.stopping |= main.go_on();
        self.take_commands();
        self.driver.end_turn(&mut self.engine);
        self.publish();
        if let Some(stopwatch) = &mut self.stopwatch {
            stopwatch.turn_ends();
        }
        Ok(())
    }

    #[cold]
    fn measure_begin(&mut self) {
        let now = self.clock.now();
        let due = self.driver.next_timer().filter(|due| *due <= now);
        if let Some(stopwatch) = &mut self.stopwatch {
            stopwatch.turn_begins();
            if let Some(due) = due {
                stopwatch.timer_was_due(Duration::from_millis(now - due));
            }
        }
    }

    #[cold]
    fn tell_slow(&self, Slow { connection, took, untold }: Slow) {
        let control = self.driver.control(connection);
        report(|| {
            let whose: &dyn fmt::Display = match &control {
                Some(control) => control,
                None if connection != 0 => &"a connection that is over",
                None => &"a task",
            };
            log::warn!(
                "{whose} has held its poller for {took:?}; {untold} others since the last warning"
            );
        });
    }

    #[cold]
    fn tell_memory_level(&self, level: MemoryLevel) {
        if let Some(callback) = &self.on_memory_level {
            contain("on_memory_level", || callback(level));
        }
    }

    /// How long to sleep; not at all if there is something to do.
    fn timeout(&mut self, is_busy: bool) -> Option<Duration> {
        if is_busy || self.handle.executor.has_ready() {
            self.busy_turns = self.busy_turns.saturating_add(1);
            if self.busy_turns > BUSY_TURNS && self.clock.is_moved() {
                // Somebody is always ready.
                let next = self.next_due();
                self.clock.step(next, false);
            }
            return Some(Duration::ZERO);
        }
        self.busy_turns = 0;
        if !self.handle.mailbox.sleep() {
            self.gather();
            return Some(Duration::ZERO);
        }
        self.gatherings = 0;
        if self.clock.stands() {
            return self.move_clock();
        }
        let until = |deadline: Instant| deadline.saturating_duration_since(self.clock.instant());
        let timer = self.driver.next_expiry().map(|tick| until(self.clock.instant_of(tick)));
        let shutdowns = self.shutdowns.deadlines().map(until);
        timer.into_iter().chain(shutdowns).min()
    }

    /// Other threads have left something during the turn. If nothing else was done in some turns, they are faster than turns
    /// are: a moment later there is more of it, which goes out together.
    fn gather(&mut self) {
        let done = self.engine.stats().received_bytes + self.stats.task_polls;
        if mem::replace(&mut self.done_before, done) != done {
            self.gatherings = 0;
            return;
        }
        self.gatherings += 1;
        if self.gatherings > GATHERINGS {
            let begun = Instant::now();
            while begun.elapsed() < GATHERING {
                std::hint::spin_loop();
            }
        }
    }

    /// Moves a clock that stands to what is due next, if nothing else happens. How long to sleep then.
    #[cold]
    fn move_clock(&mut self) -> Option<Duration> {
        // What the kernel is to move between two connections of this poller may take a turn or two.
        self.quiet_turns += 1;
        let idle = self.quiet_turns > QUIET_TURNS;
        let next = self.next_due();
        if self.clock.step(next, idle) {
            self.quiet_turns = 0;
            return Some(Duration::ZERO);
        }
        (!idle).then_some(Duration::ZERO)
    }

    /// The next tick at which something is due.
    fn next_due(&mut self) -> Option<Tick> {
        let shutdowns = self.shutdowns.deadlines().map(|deadline| self.clock.tick_of(deadline));
        self.driver.next_expiry().into_iter().chain(shutdowns).min()
    }

    fn take_commands(&mut self) {
        let mut commands = mem::take(&mut self.commands);
        let called = self.handle.mailbox.take(&mut commands);
        for command in commands.drain(..) {
            self.driver.apply(&mut self.engine, command);
        }
        self.commands = commands;
        if called {
            self.handle.executor.collect();
            let calls = lock(&self.handle.calls).as_mut().map(mem::take);
            for call in calls.into_iter().flatten() {
                call(self);
            }
        }
    }

    fn take_accepted(&mut self) {
        let mut accepted = mem::take(&mut self.accepted);
        self.driver.take_accepted(&mut accepted);
        for Accepted { listener, socket } in accepted.drain(..) {
            let entry = self.listeners.iter().find(|entry| entry.token == listener);
            if let Some(entry) = entry {
                entry.acceptor.clone().accepted(self, listener, socket);
            }
        }
        self.accepted = accepted;
    }

    /// Accepts from a listening socket.
    pub(crate) fn listen(
        &mut self,
        socket: OwnedFd,
        group: Group,
        acceptor: Arc<dyn Acceptor>,
    ) -> io::Result<Token> {
        if acceptor.is_over() {
            return Err(over());
        }
        let token = self.driver.listen(&mut self.engine, socket)?;
        acceptor.listens(&self.handle, token);
        self.listeners.push(ListenerEntry { token, group, acceptor, leaving: false, _done: None });
        Ok(token)
    }

    /// The sockets of a group's listeners, once more.
    pub(crate) fn listening(&self, group: Group) -> io::Result<Vec<OwnedFd>> {
        let ours = self.listeners.iter().filter(|entry| entry.group == group && !entry.leaving);
        let sockets = ours.filter_map(|entry| self.driver.listener(entry.token));
        sockets.map(|socket| socket.try_clone_to_owned()).collect()
    }

    /// Stops accepting from a listener. `done` is dropped when the kernel holds
    /// nothing of it any more.
    pub(crate) fn stop_listening(&mut self, token: Token, done: Option<shutdown::Token>) {
        if let Some(entry) = self.listeners.iter_mut().find(|entry| entry.token == token) {
            entry.leaving = true;
            entry._done = done;
            self.driver.unlisten(&mut self.engine, token);
        }
    }

    /// Accepts no more from a listener for a while.
    pub(crate) fn pause_listener(&mut self, token: Token) {
        self.driver.pause_listener(token);
    }

    /// Accepts from a listener again.
    pub(crate) fn resume_listener(&mut self, token: Token) {
        self.driver.resume_listener(&mut self.engine, token);
    }

    /// Takes a connected socket on.
    pub(crate) fn open(
        &mut self,
        socket: OwnedFd,
        limits: Limits,
        group: Group,
    ) -> io::Result<Connection> {
        let (reader, writer) = self.driver.open(&mut self.engine, Some(socket), limits, group)?;
        self.tell_open();
        Ok(Connection::established(reader, writer))
    }

    /// Takes a connected socket on, of which nothing is received before it is [resumed](Connection::resume).
    pub(crate) fn open_paused(
        &mut self,
        socket: OwnedFd,
        limits: Limits,
        group: Group,
    ) -> io::Result<Connection> {
        let (reader, writer) =
            self.driver.open_paused(&mut self.engine, Some(socket), limits, group)?;
        self.tell_open();
        Ok(Connection::established(reader, writer))
    }

    /// Takes a socket on whose connect(2) is under way.
    pub(crate) fn connect(
        &mut self,
        socket: OwnedFd,
        limits: Limits,
        group: Group,
    ) -> io::Result<Connection> {
        let (reader, writer) =
            self.driver.connect(&mut self.engine, Some(socket), limits, group)?;
        self.tell_open();
        Ok(Connection::new(reader, writer))
    }

    /// One that was on its way is here: it is to be opened now.
    pub(crate) fn arrived(&mut self, coming: Coming) {
        coming.arrive();
        self.counted += 1;
    }

    /// Corrects the load by what was opened and closed.
    fn tell_open(&mut self) {
        let open = self.driver.open_connections();
        let before = mem::replace(&mut self.counted, open);
        if open != before {
            self.handle.load.fetch_add(open.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Watches a descriptor.
    pub(crate) fn watch(&mut self, fd: OwnedFd, kind: Kind) -> io::Result<(Token, Arc<Readiness>)> {
        self.driver.watch(&mut self.engine, fd, kind)
    }

    /// Has it told when a socket for datagrams has room.
    pub(crate) fn watch_room(&mut self, token: Token) {
        self.driver.watch_room(&mut self.engine, token);
    }

    /// Watches it no more.
    pub(crate) fn unwatch(&mut self, token: Token) {
        self.driver.unwatch(&mut self.engine, token);
    }

    /// Whether it has not let go of the descriptor yet.
    pub(crate) fn watches(&self, token: Token) -> bool {
        self.driver.watches(token)
    }

    /// Lends the socket of a connection to whoever moves its bytes past the engine.
    pub(crate) fn lend(&mut self, token: Token) -> Option<Arc<Readiness>> {
        self.driver.lend(&mut self.engine, token)
    }

    /// Serves it again.
    pub(crate) fn give_back_lent(&mut self, token: Token) {
        self.driver.give_back_lent(&mut self.engine, token);
    }

    /// Handles on the connections of a group that are open.
    pub(crate) fn controls(&self, group: Group) -> Vec<Control> {
        self.driver.controls(group)
    }

    /// Starts a task on this poller, that nobody has a handle on.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.handle.executor.spawn(future);
    }

    /// Starts the task that serves a connection.
    pub(crate) fn serve(&self, control: &Control, future: impl Future<Output = ()> + 'static) {
        let (engine, measures) = (self.handle.report.engine, self.stopwatch.is_some());
        self.spawn(trace::serving(control, engine, measures, future));
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Accepts who waits at a listener, without being told by the engine. False if there are no descriptors for all.
    pub(crate) fn accept_backlog(&mut self, token: Token) -> bool {
        let entry = self.listeners.iter().find(|entry| entry.token == token);
        let Some(acceptor) = entry.map(|entry| entry.acceptor.clone()) else { return true };
        let (backlog, all) = self.driver.listener(token).map_or_else(Default::default, accept_rest);
        self.stats.accepts += backlog.len() as u64;
        for socket in backlog {
            acceptor.clone().accepted(self, token, socket);
        }
        all
    }

    /// Stops accepting for a group, and drops `done` when nothing can be accepted any more. Connections that the kernel has
    /// established already are still taken on, since their peers may have sent requests.
    fn unlisten(&mut self, group: Group, backlog: Backlog, done: shutdown::Token) {
        let ours = self.listeners.iter().filter(|entry| entry.group == group && !entry.leaving);
        let ours: Vec<_> = ours.map(|entry| entry.token).collect();
        let patience = self.clock.instant() + BACKLOG_PATIENCE;
        for token in ours {
            match backlog {
                Backlog::Served => self.leave(token, patience),
                Backlog::Left => self.stop_listening(token, None),
            }
        }
        self.shutdowns.await_listeners(group, done);
    }

    /// Stops accepting when all have been accepted who wait, or nobody can be for so long.
    fn leave(&mut self, token: Token, patience: Instant) {
        let now = self.clock.instant();
        if self.accept_backlog(token) || now >= patience {
            return self.stop_listening(token, None);
        }
        if let Some(entry) = self.listeners.iter_mut().find(|entry| entry.token == token) {
            entry.leaving = true;
        }
        self.shutdowns.leave_later(token, now, patience);
    }

    /// Tells whoever waits for a shutdown.
    fn look_at_shutdowns(&mut self) {
        for (token, patience) in self.shutdowns.leave_now(|| self.clock.instant()) {
            self.leave(token, patience);
        }
        let Poller { listeners, shutdowns, driver, engine, clock, .. } = self;
        if listeners.iter().any(|entry| entry.leaving) {
            listeners.retain(|entry| !entry.leaving || driver.listener(entry.token).is_some());
        }
        shutdowns.tell_unlistened(|group| {
            listeners.iter().any(|entry| entry.leaving && entry.group == group)
        });
        shutdowns.advance(driver, engine, || clock.instant());
    }

    /// Has its listeners go on elsewhere, if it ends by itself and there is where.
    fn pass_listeners_on(&mut self) {
        for ListenerEntry { token, group, acceptor, leaving, _done } in self.listeners.drain(..) {
            let failed = self.stats.failed_pollers > 0 && !leaving;
            let next = failed.then(|| acceptor.successor()).flatten();
            let socket = self.driver.listener(token).map(|socket| socket.try_clone_to_owned());
            let (Some(next), Some(Ok(socket))) = (next, socket) else {
                acceptor.ended();
                continue;
            };
            let mut lost = Lost(Some(acceptor.clone()));
            next.call(move |poller| match poller.listen(socket, group, acceptor) {
                Ok(_) => drop(lost.0.take()),
                Err(error) => {
                    report(|| log::error!("a listener has ended with its poller: {error}"));
                }
            });
        }
    }

    /// Gives back everything. The engine's memory is the kernel's until it says otherwise.
    fn tear_down(mut self) {
        self.publish();
        self.handle.ended.store(true, Ordering::Relaxed);
        let late_calls = lock(&self.handle.calls).take();
        for call in late_calls.into_iter().flatten() {
            // With it whoever waits for an answer is woken.
            contain("a call to a poller that was dropped", || drop(call));
        }
        self.pass_listeners_on();
        self.take_commands();
        // Before the tasks, with which handlers go: whoever is within a request ends with a reset.
        self.driver.wind_up(&mut self.engine);
        self.handle.executor.cancel_all();
        self.take_commands();
        // A socket that is closed with bytes unread, or gets some then, sends a reset, and what its peer has no room for yet
        // is lost: so what comes is dropped until everything is there.
        self.go_on_until(END_SEND, |driver| {
            // Perhaps but for the FIN.
            !driver.is_sending()
                && driver.lingering().all(|socket| unacknowledged_bytes(socket) <= 1)
        });
        self.driver.abort_all(&mut self.engine);
        self.go_on_until(TEARDOWN, Driver::is_empty);
        self.handle.mailbox.close();
        timers::clear();
        self.publish();
    }

    /// Takes turns without tasks until that is so, or the time is over.
    fn go_on_until(&mut self, time: Duration, done: impl Fn(&Driver) -> bool) {
        let deadline = Instant::now() + time;
        while !done(&self.driver) && Instant::now() < deadline {
            let turn = Some(Duration::from_millis(10));
            if self.engine.wait(turn, &mut self.driver).is_err() {
                break;
            }
            self.take_commands();
            self.driver.begin_turn(&mut self.engine);
            self.driver.end_turn(&mut self.engine);
        }
    }

    /// Has everybody see what was counted so far, and what connections are balanced by.
    pub(crate) fn publish(&mut self) {
        self.tell_open();
        let mut stats = self.stats;
        stats.add_handlers();
        stats.add_engine(self.engine.stats());
        stats.add_direct(duopoll_core::direct_sends());
        stats.add_driver(self.driver.stats());
        stats.timers = self.driver.timers() as u64;
        stats.open_connections = self.driver.open_connections() as u64;
        self.handle.published.write(&stats);
    }
}

/// A listener that is on its way to another poller; dropped, if it does not arrive.
struct Lost(Option<Arc<dyn Acceptor>>);

impl Drop for Lost {
    fn drop(&mut self) {
        if let Some(acceptor) = self.0.take() {
            acceptor.ended();
        }
    }
}

/// Connections that are still accepted when a listener stops, at most: as many as a backlog can hold. Others may come as fast as
/// these are taken.
const BACKLOG_TAKEN_MAX: usize = 65_535;

/// How long a listener that stops waits for descriptors, if there are none for those who wait to be accepted.
const BACKLOG_PATIENCE: Duration = Duration::from_secs(1);

/// The connections that the kernel has established for a listener, and whether that is all of them.
fn accept_rest(socket: BorrowedFd<'_>) -> (Vec<OwnedFd>, bool) {
    let mut all = true;
    let accept = || loop {
        match syscalls::accept(socket) {
            Ok(accepted) => return Some(accepted),
            // Of a connection that is gone.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
            Err(error) => {
                // That there are none is said first, and only then whether one is needed.
                let needed = syscalls::ready(socket).contains(PollFlags::IN);
                all = !syscalls::is_shortage(&error) || !needed;
                return None;
            }
        }
    };
    (std::iter::from_fn(accept).take(BACKLOG_TAKEN_MAX).collect(), all)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
