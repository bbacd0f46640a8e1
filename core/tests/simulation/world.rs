//! A world: a driver, the engine under it, peers, tasks, and a loop like a poller's. All of it follows from the seed.

use std::cell::Cell;
use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use duopoll_core::task::Executor;
use duopoll_core::{
    Command, Control, Deregister, Driver, Entered, Group, Limits, Mailbox, Poll, Pool, Token,
    timers,
};

use crate::clock::{Alarms, Micros, SimClock, Sleeps};
use crate::engine::SimEngine;
use crate::link::{Connect, Goal, Link, PeerAction, Plan, STALL_MAX};
use crate::rng::Rng;
use crate::senders::{self, SendSide};
use crate::tasks::{self, Env, ReadSide, WriteSide};

/// More turns than any world needs that comes to an end.
const TURNS_MAX: usize = 20_000;
/// Polls in one turn before the engine gets its own.
const POLLS_MAX: usize = 100;

pub(crate) struct World {
    rng: Rng,
    clock: Arc<SimClock>,
    alarms: Rc<Alarms>,
    engine: SimEngine,
    driver: Driver,
    mailbox: Arc<Mailbox>,
    executor: Tasks,
    entered: Option<Entered>,
    commands: Vec<Command>,
    tasks: Vec<Task>,
    woken: Arc<Woken>,
    links: Vec<Rc<Link>>,
    controls: Vec<Control>,
    schedule: VecDeque<(Micros, Request)>,
    draining: Rc<Cell<bool>>,
    sleeps: Rc<Sleeps>,
    /// When the last turn began, and the longest time between two.
    began: Micros,
    longest: Micros,
    /// The last turn that began when the poller had been held up.
    late: Option<Micros>,
    opened: u64,
    forced: u64,
    blocks_before: usize,
}

/// What is done to the driver as a whole.
#[derive(Clone, Copy, Debug)]
enum Request {
    Open,
    Drain,
    AbortAll,
    /// The poller ends: what was flushed still goes out. Or it is broken, and ends by force, and without waiting for the
    /// engine for long.
    TearDown,
}

struct Task {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Runs as if on a thread of its own.
    remote: bool,
    ready: bool,
    /// Of the waker that the task was polled with last. Earlier ones need not be called, so they do nothing.
    generation: u64,
    /// Where the executor has it.
    executed: Option<Executed>,
}

/// The executor; its tasks do not outlive the world, whatever ends it.
struct Tasks(Arc<Executor>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.cancel_all();
        timers::clear();
    }
}

/// A task of the executor's.
struct Executed {
    token: Token,
    seen: Arc<Seen>,
}

/// What was seen of it.
struct Seen {
    /// Woken, and not polled since.
    ready: AtomicBool,
    over: AtomicBool,
}

impl Task {
    fn is_alive(&self) -> bool {
        let executed = |task: &Executed| !task.seen.over.load(Relaxed);
        self.future.is_some() || self.executed.as_ref().is_some_and(executed)
    }

    fn is_ready(&self) -> bool {
        let executed = |task: &Executed| task.seen.ready.load(Relaxed);
        self.is_alive() && (self.ready || self.executed.as_ref().is_some_and(executed))
    }
}

/// A task that the executor runs, and of which the world knows when it was woken and polled.
struct Watched {
    future: Pin<Box<dyn Future<Output = ()>>>,
    seen: Arc<Seen>,
}

impl Future for Watched {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> std::task::Poll<()> {
        self.seen.ready.store(false, Relaxed);
        let waker = WatchedWaker { seen: self.seen.clone(), waker: cx.waker().clone() };
        self.future.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(waker))))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.seen.over.store(true, Relaxed);
    }
}

struct WatchedWaker {
    seen: Arc<Seen>,
    waker: Waker,
}

impl Wake for WatchedWaker {
    fn wake(self: Arc<Self>) {
        self.seen.ready.store(true, Relaxed);
        self.waker.wake_by_ref();
    }
}

/// Tasks that were woken, and by the waker of which generation.
#[derive(Default)]
struct Woken(Mutex<Vec<(usize, u64)>>);

struct TaskWaker {
    task: usize,
    generation: u64,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut woken = self.woken.0.lock().unwrap_or_else(PoisonError::into_inner);
        woken.push((self.task, self.generation));
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let blocks_before = Pool::global().stats().live_blocks;
        let clock = SimClock::new(rng.below(5_000_000));
        let engine = SimEngine::new(rng.fork(), clock.clone());
        let mailbox = Arc::new(Mailbox::new(engine.waker(), clock.clone()));
        let entered = Some(mailbox.enter());
        let executor = Executor::new(mailbox.clone());
        executor.open();
        let mut world = World {
            driver: Driver::new(mailbox.clone()),
            alarms: Rc::default(),
            engine,
            entered,
            executor: Tasks(executor),
            mailbox,
            commands: Vec::new(),
            tasks: Vec::new(),
            woken: Arc::default(),
            links: Vec::new(),
            controls: Vec::new(),
            schedule: VecDeque::new(),
            draining: Rc::default(),
            sleeps: Rc::default(),
            began: 0,
            longest: 0,
            late: None,
            opened: 0,
            forced: 0,
            blocks_before,
            clock,
            rng,
        };
        for _ in 0..world.rng.within(1, 4) {
            world.open();
        }
        let mut at = world.clock.micros();
        for _ in 0..world.rng.below(7) {
            at += world.rng.span();
            world.schedule.push_back((at, Request::Open));
        }
        let end = match world.rng.below(40) {
            0..=3 => Some(Request::Drain),
            4 | 5 => Some(Request::AbortAll),
            6 | 7 => Some(Request::TearDown),
            _ => None,
        };
        if let Some(end) = end {
            at += world.rng.span();
            world.schedule.push_back((at, end));
        }
        world
    }

    /// Runs until everything has ended.
    pub(crate) fn run(mut self) {
        let mut nudges = 0;
        for _ in 0..TURNS_MAX {
            if !self.turn() {
                return self.tear_down();
            }
            let done = !self.tasks.iter().any(Task::is_alive);
            if done && self.driver.is_empty() && self.engine.without_notice() == 0 {
                return self.end();
            }
            if self.engine.at_rest {
                self.check_rest();
                self.nudge(nudges);
                nudges += 1;
            }
        }
        panic!("the world does not come to rest");
    }

    /// As a poller's turn. False when the driver is to be torn down.
    fn turn(&mut self) -> bool {
        self.collect();
        let busy = self.tasks.iter().any(|task| task.is_ready() && !task.remote);
        let sleeps = !busy && !self.executor.0.has_ready() && self.mailbox.sleep();
        if sleeps {
            let woken = |task: &Task| task.executed.is_some() && task.is_ready();
            assert!(!self.tasks.iter().any(woken), "the executor has lost a wake-up");
        }
        // Others go on while the poller sleeps.
        self.run_tasks(true);
        if self.tasks.iter().any(|task| task.ready && !task.remote) {
            self.mailbox.wake();
        }
        let now = self.clock.micros();
        let timeout = match self.driver.next_expiry() {
            _ if !sleeps => Some(0),
            expiry => expiry.map(|tick| (tick * 1000).saturating_sub(now)),
        };
        let planned = self.schedule.front().map(|(at, _)| *at);
        self.engine.horizon = self.alarms.next().into_iter().chain(planned).min();
        note!("{now} turn, timeout {timeout:?}");
        if self.rng.one_in(60) && !self.engine.calm {
            // The process is stopped, or the machine.
            mark!("a turn that comes late");
            self.clock.advance_to(self.clock.micros() + self.rng.below(STALL_MAX));
        }
        let waited = self.engine.wait(timeout.map(Duration::from_micros), &mut self.driver);
        waited.expect("a simulation does not break");
        self.alarms.ring(self.clock.micros());
        let left = self.take_commands();
        assert!(left == 0 || !self.engine.at_rest, "the poller slept over a command");
        self.engine.at_rest &= !self.executor.0.has_ready();
        self.driver.begin_turn(&mut self.engine);
        let began = self.clock.micros();
        if self.began > 0 {
            self.longest = self.longest.max(began - self.began);
            if began - self.began >= 10_000 {
                self.late = Some(began);
            }
        }
        self.began = began;
        while self.schedule.front().is_some_and(|(at, _)| *at <= began) {
            let Some((_, request)) = self.schedule.pop_front() else { break };
            note!("{began} {request:?}");
            match request {
                Request::Open => self.open(),
                Request::Drain => {
                    self.draining.set(true);
                    self.engine.drains = true;
                    self.driver.drain(&mut self.engine, Group::default(), 0);
                    self.engine.drains = false;
                }
                Request::AbortAll => self.abort_all(),
                Request::TearDown => return false,
            }
        }
        self.run_tasks(false);
        self.take_commands();
        self.driver.end_turn(&mut self.engine);
        self.check_turn(began);
        true
    }

    fn take_commands(&mut self) -> usize {
        let mut commands = mem::take(&mut self.commands);
        if self.mailbox.take(&mut commands) {
            self.executor.0.collect();
        }
        let count = commands.len();
        for command in commands.drain(..) {
            note!("{} {command:?}", self.clock.micros());
            self.driver.apply(&mut self.engine, command);
        }
        self.commands = commands;
        count
    }

    fn abort_all(&mut self) {
        self.engine.by_force = true;
        self.forced += self.driver.abort_all(&mut self.engine) as u64;
        self.engine.by_force = false;
    }

    fn collect(&mut self) {
        let woken = mem::take(&mut *self.woken.0.lock().unwrap_or_else(PoisonError::into_inner));
        for (task, generation) in woken {
            let task = &mut self.tasks[task];
            task.ready |= task.is_alive() && task.generation == generation;
        }
    }

    /// Polls the tasks that were woken, in any order, and now and then one that was not.
    fn run_tasks(&mut self, remote: bool) {
        if self.rng.one_in(10) && !self.tasks.is_empty() {
            let index = self.rng.below(self.tasks.len() as u64) as usize;
            self.tasks[index].ready = self.tasks[index].future.is_some();
        }
        for _ in 0..POLLS_MAX {
            if !remote {
                self.execute();
            }
            self.collect();
            let ready = |(_, task): &(usize, &Task)| task.ready && task.remote == remote;
            let ready = self.tasks.iter().enumerate().filter(ready).map(|(index, _)| index);
            let ready: Vec<_> = ready.collect();
            if ready.is_empty() {
                return;
            }
            let index = self.rng.pick(&ready);
            self.poll(index);
            // What was polled may have gone on.
            self.engine.at_rest = false;
            if !remote && self.mailbox.is_urgent() {
                self.take_commands();
            }
        }
    }

    /// Runs the tasks of the executor that are ready, and ends one now and then, from this thread or another.
    fn execute(&mut self) {
        if self.rng.one_in(200) && !self.tasks.is_empty() {
            let index = self.rng.below(self.tasks.len() as u64) as usize;
            if let Some(Executed { token, .. }) = self.tasks[index].executed {
                mark!("a task that is aborted");
                let elsewhere = self.rng.one_in(2);
                if elsewhere {
                    self.take_commands();
                    self.leave();
                }
                self.executor.0.abort(token);
                if elsewhere {
                    self.entered = Some(self.mailbox.enter());
                }
            }
        }
        let ran = self.executor.0.run(|| ());
        assert_eq!(ran.panics, 0, "a task has panicked");
        if ran.polls > 0 {
            self.engine.at_rest = false;
            self.take_commands();
        }
    }

    fn poll(&mut self, index: usize) {
        let renewed = self.rng.one_in(4);
        let task = &mut self.tasks[index];
        task.ready = false;
        task.generation += u64::from(renewed);
        let (generation, remote) = (task.generation, task.remote);
        let waker = TaskWaker { task: index, generation, woken: self.woken.clone() };
        let waker = Waker::from(Arc::new(waker));
        let Some(mut future) = task.future.take() else { return };
        if remote {
            self.leave();
        }
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks[index].future = Some(future);
        } else {
            drop(future);
        }
        if remote {
            self.entered = Some(self.mailbox.enter());
        } else if self.rng.one_in(12) && !self.engine.calm {
            mark!("a handler that takes time");
            let took = self.rng.pick(&[900, 20_000, 400_000, 1_500_000]);
            self.clock.advance_to(self.clock.micros() + took);
        }
    }

    /// What follows is done as if on another thread. The timers of this one wake whom they belong to, and are gone.
    fn leave(&mut self) {
        self.entered = None;
        self.sleeps.epoch.set(self.sleeps.epoch.get() + 1);
    }

    /// Opens a connection, and starts the tasks that use it.
    fn open(&mut self) {
        let rng = &mut self.rng;
        let now = self.clock.micros();
        let limits = some_limits(rng);
        let plan = some_plan(rng, now);
        let connects = plan.connect.is_some();
        let id = self.links.len();
        let link = Rc::new(Link::new(id, rng.next(), limits, now, plan));
        let errno = if rng.one_in(40) { Some(libc::ENOMEM) } else { None };
        self.engine.next = Some((link.clone(), errno));
        self.engine.drains = self.draining.get();
        let opened = if connects {
            self.driver.connect(&mut self.engine, None, limits, Group::default())
        } else {
            self.driver.open(&mut self.engine, None, limits, Group::default())
        };
        self.engine.drains = false;
        let (reader, writer) = match (opened, errno) {
            (Ok(halves), None) => halves,
            (Err(error), Some(errno)) => {
                assert_eq!(error.raw_os_error(), Some(errno));
                return;
            }
            (opened, errno) => panic!("{opened:?}, {errno:?}"),
        };
        self.opened += 1;
        self.links.push(link.clone());
        let control = reader.control();
        self.controls.push(control.clone());
        let clock = self.clock.clone();
        let read = ReadSide { reader, link: link.clone(), clock: clock.clone() };
        if self.rng.one_in(4) {
            mark!("several who send");
            let side = SendSide::new(writer, link.clone(), clock);
            for _ in 0..self.rng.below(4) {
                let another = side.another();
                self.spawn(|env| senders::send(another, env));
            }
            self.spawn(|env| senders::send(side, env));
            self.spawn(|env| tasks::read(read, env));
            if self.rng.one_in(2) {
                self.spawn(|env| tasks::control(control, link, env));
            }
            return;
        }
        let write = WriteSide { writer, link: link.clone(), clock };
        if self.rng.one_in(3) {
            self.spawn(|env| tasks::read_and_write(read, write, env));
        } else {
            self.spawn(|env| tasks::read(read, env));
            self.spawn(|env| tasks::write(write, env));
        }
        if self.rng.one_in(2) {
            self.spawn(|env| tasks::control(control, link, env));
        }
    }

    fn spawn<F: Future<Output = ()> + 'static>(&mut self, make: impl FnOnce(Env) -> F) {
        let remote = self.rng.one_in(3);
        let env = Env {
            task: self.tasks.len(),
            rng: self.rng.fork(),
            clock: self.clock.clone(),
            alarms: self.alarms.clone(),
            sleeps: (!remote).then(|| self.sleeps.clone()),
            draining: self.draining.clone(),
        };
        let future = Box::pin(make(env)) as Pin<Box<dyn Future<Output = ()>>>;
        let mut task = Task { future: None, remote, ready: true, generation: 0, executed: None };
        if !remote && self.rng.one_in(2) {
            let (ready, over) = (AtomicBool::new(true), AtomicBool::new(false));
            let seen = Arc::new(Seen { ready, over });
            let watched = Watched { future, seen: seen.clone() };
            let token = self.executor.0.spawn(watched).expect("it takes tasks");
            (task.executed, task.ready) = (Some(Executed { token, seen }), false);
        } else {
            task.future = Some(future);
        }
        self.tasks.push(task);
    }

    fn check_turn(&mut self, began: Micros) {
        self.collect();
        self.engine.use_lent_memory();
        assert_eq!(self.driver.len(), self.engine.len(), "slots and registrations");
        assert!(self.driver.open_connections() <= self.driver.len());
        self.check_sleepers(began);
    }

    fn check_sleepers(&mut self, began: Micros) {
        self.collect();
        let now = self.clock.micros();
        let asleep = |task: usize| !self.tasks[task].is_ready() && self.tasks[task].is_alive();
        self.sleeps.check(began, asleep);
        for link in &self.links {
            link.check_sleepers(began, now, self.longest, self.late, self.draining.get(), asleep);
        }
    }

    /// Nothing more can happen by itself.
    fn check_rest(&mut self) {
        self.collect();
        if self.tasks.iter().any(Task::is_ready) {
            self.engine.at_rest = false;
            return;
        }
        assert_eq!(self.driver.next_expiry(), None);
        for link in &self.links {
            link.check_rest();
        }
    }

    /// Ends waits that were right to last: the peers go on, then end, then break.
    fn nudge(&mut self, times: usize) {
        note!("{} at rest, {times} times", self.clock.micros());
        self.engine.calm = true;
        // As another thread: what is left on the poller's own goes with it.
        self.leave();
        for (link, control) in self.links.iter().zip(&self.controls) {
            link.state().paused = false;
            // Time may pass before anybody looks.
            link.state().count(self.clock.micros());
            control.resume();
            let mut state = link.state();
            match times {
                0 | 1 => state.peer_reads_all = true,
                2 => state.fin = true,
                3 | 4 => state.reset = state.reset.or(Some(libc::ECONNRESET)),
                _ => {}
            }
        }
        self.entered = Some(self.mailbox.enter());
        match times {
            0..=4 => {}
            5 => self.abort_all(),
            6 | 7 => {}
            _ => panic!("a wait that never ends"),
        }
    }

    /// Everything has come to its end.
    fn end(mut self) {
        self.take_commands();
        assert_eq!((self.driver.len(), self.engine.len()), (0, 0));
        assert_eq!(self.driver.open_connections(), 0);
        assert_eq!(self.driver.next_expiry(), None, "a timer is left");
        assert_eq!((self.executor.0.tasks(), self.driver.timers()), (0, 0), "tasks and timers");
        for link in &self.links {
            link.check_end();
        }
        let count = |what: fn(&Link) -> bool| self.links.iter().filter(|link| what(link)).count();
        let closed = count(|link| {
            let state = link.state();
            state.deregistered == Some(Deregister::Close) || state.cut
        });
        let idle = count(|link| link.state().idle_ended);
        let stats = self.driver.stats();
        assert_eq!((stats.connections, stats.closed), (self.opened, self.opened));
        // Of a reset, nobody can say whether it was idle or out of patience, if it was both.
        let reset = count(|link| link.state().cut);
        let idle = idle as u64..=(idle + reset) as u64;
        assert!(idle.contains(&stats.idle_timeouts), "{idle:?} were idle: {stats:?}");
        let late = stats.forced - self.forced + stats.close_timeouts;
        assert!(late <= closed as u64, "{late} of {closed} closed late: {stats:?}");
        let World { driver, entered, engine, tasks, controls, blocks_before, .. } = self;
        drop((driver, engine, tasks, controls));
        drop(entered);
        assert_eq!(Pool::global().stats().live_blocks, blocks_before, "blocks are left");
    }

    /// The driver goes before its engine has released everything: what is lent must stay as it is.
    fn tear_down(mut self) {
        if self.rng.one_in(2) {
            self.executor.0.cancel_all();
            for task in self.tasks.iter_mut().filter(|task| !task.remote) {
                task.future = None;
            }
        }
        if self.rng.one_in(2) {
            self.wind_up();
        }
        self.abort_all();
        for _ in 0..self.rng.below(20) {
            self.take_commands();
            let waited = self.engine.wait(Some(Duration::from_millis(10)), &mut self.driver);
            waited.expect("a simulation does not break");
        }
        self.driver = Driver::new(self.mailbox.clone());
        // Whoever sleeps looks for another poller.
        self.sleeps.over.set(true);
        timers::clear();
        // Whoever was taking a socket away waits for the engine, which is gone.
        for link in &self.links {
            let wait = link.state().reading.waits.first().copied();
            if let Some(wait) = wait.filter(|wait| matches!(wait.goal, Goal::Detached)) {
                self.tasks[wait.task].future = None;
                if let Some(Executed { token, .. }) = self.tasks[wait.task].executed {
                    self.executor.0.abort(token);
                }
            }
        }
        // Tasks find out by themselves, whoever runs them now.
        for _ in 0..TURNS_MAX {
            self.engine.use_lent_memory();
            self.run_tasks(true);
            self.run_tasks(false);
            self.check_sleepers(0);
            match self.alarms.next() {
                Some(at) => self.clock.advance_to(at),
                None => break,
            }
            self.alarms.ring(self.clock.micros());
        }
        assert!(!self.tasks.iter().any(Task::is_alive), "a wait that never ends");
        assert_eq!((self.executor.0.tasks(), self.driver.timers()), (0, 0), "tasks and timers");
        let World { driver, entered, engine, tasks, controls, blocks_before, .. } = self;
        drop((driver, tasks, controls));
        drop(entered);
        if engine.in_flight() == 0 {
            assert_eq!(Pool::global().stats().live_blocks, blocks_before, "blocks are left");
        }
    }
}

impl World {
    /// Everything that was flushed goes out, as far as the peers take it.
    fn wind_up(&mut self) {
        self.take_commands();
        self.engine.by_force = true;
        for link in &self.links {
            let within = link.state().within;
            let mut state = link.state();
            if state.closed.is_none() && state.deregistered.is_none() && !within {
                state.wound_up = true;
            }
            if state.flushed > state.sent {
                mark!("flushed, and unsent when the poller ends");
            }
        }
        self.driver.wind_up(&mut self.engine);
        let mut turns = 0;
        while self.driver.is_sending() && turns < 1_000 {
            turns += 1;
            let waited = self.engine.wait(Some(Duration::from_millis(10)), &mut self.driver);
            waited.expect("a simulation does not break");
            self.take_commands();
            self.driver.begin_turn(&mut self.engine);
            self.driver.end_turn(&mut self.engine);
        }
        self.engine.by_force = false;
        for link in &self.links {
            let room = link.room() > 0;
            let state = link.state();
            if !self.driver.is_sending()
                && state.wound_up
                && room
                && !state.output_is_over()
                && state.connect.is_none()
            {
                assert_eq!(
                    state.sent, state.flushed,
                    "link {}: lost at the end: {state:?}",
                    link.id
                );
            }
        }
    }
}

fn some_limits(rng: &mut Rng) -> Limits {
    let mut limits = Limits::default();
    limits.input_high_bytes = rng.pick(&[1, 16, 100, 1_000, 10_000, 1 << 20]);
    limits.output_high_bytes = rng.pick(&[0, 1, 100, 1_000, 10_000, 1 << 20]);
    let mut timeout = |one_in| {
        if rng.one_in(one_in) { Some(Duration::from_micros(rng.span())) } else { None }
    };
    limits.read_timeout = timeout(6);
    limits.write_timeout = timeout(6);
    limits.idle_timeout = timeout(10);
    #[cfg(feature = "zerocopy")]
    if rng.one_in(3) {
        limits.zerocopy_bytes = Some(rng.pick(&[0, 1, 50, 1_000]));
        limits.zerocopy_pinned_bytes = rng.pick(&[1, 200, 5_000, 1 << 20]);
    }
    limits
}

fn some_plan(rng: &mut Rng, now: Micros) -> Plan {
    let mut script = VecDeque::new();
    let mut at = now;
    // Half of the peers are in a hurry.
    let hurry = rng.one_in(2);
    for _ in 0..rng.below(30) {
        at += if hurry { rng.below(3_000) } else { rng.span() };
        let action = match rng.below(8) {
            0 | 1 => PeerAction::Read(rng.size() as u64),
            2 => PeerAction::ReadAll,
            _ => PeerAction::Send(rng.size() as u64),
        };
        script.push_back((at, action));
    }
    at += rng.span();
    let errno = rng.pick(&[libc::ECONNRESET, libc::ETIMEDOUT]);
    match rng.below(10) {
        0 | 1 => script.push_back((at, PeerAction::Reset { errno, keep: rng.one_in(2) })),
        2 => {}
        _ => script.push_back((at, PeerAction::Fin)),
    }
    let connect = rng.one_in(5).then(|| {
        let errno = rng.pick(&[libc::ECONNREFUSED, libc::ETIMEDOUT, libc::ENETUNREACH]);
        Connect { at: now + rng.span(), errno: rng.one_in(3).then_some(errno) }
    });
    Plan {
        script,
        connect,
        reads_all: rng.one_in(2),
        room_bytes: rng.pick(&[1, 50, 1_000, 20_000]),
        answers: if rng.one_in(3) { None } else { Some(rng.span()) },
        faulty: rng.one_in(8),
        mistaken: rng.one_in(60),
    }
}
