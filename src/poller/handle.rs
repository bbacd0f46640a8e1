//! The way to a poller, from any thread: what it is to do is left for it as a closure, and it is woken.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use duopoll_core::task::Executor;
use duopoll_core::{Command, Group, Limits, contain};
use futures_channel::oneshot;

use crate::affinity;
use crate::clock::PollerClock;
use crate::connection::Connection;
use crate::engine::EngineReport;
use crate::poller::shutdown::{Backlog, GroupShutdown, Outstanding, Token};
use crate::poller::{CURRENT, Call, Handle, Owner, Poller, PollerSpec, lock};
use crate::stats::Stats;
use crate::timings::Timings;

impl Handle {
    /// Starts a poller, and waits until its engine runs.
    pub(crate) fn start(
        name: String,
        spec: PollerSpec,
        cpu: Option<usize>,
    ) -> io::Result<Arc<Handle>> {
        let (ready, started) = mpsc::channel();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let pinned = cpu.map_or(Ok(()), affinity::pin);
            // Made here, since a ring belongs to the thread that made it.
            match pinned.and_then(|()| Poller::new(&spec)) {
                Ok(poller) => {
                    let handle = poller.handle.clone();
                    if ready.send(Ok(handle)).is_ok() {
                        // Logged.
                        let _ = poller.run(|_| (), &mut ());
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        let handle = started.recv().unwrap_or_else(|_| Err(ended()))?;
        *lock(&handle.thread) = Some(thread);
        Ok(handle)
    }

    /// Has the poller do something, soon. False if it has ended.
    pub(crate) fn call(&self, call: impl FnOnce(&mut Poller) + Send + 'static) -> bool {
        let mut call: Option<Call> = Some(Box::new(call));
        if let Some(calls) = &mut *lock(&self.calls) {
            calls.extend(call.take());
        }
        let left = call.is_none();
        if left {
            self.mailbox.wake();
        }
        // One that comes too late is dropped here, without the lock: what it carries may call, too.
        left
    }

    /// Has the poller do something, and gives its answer when it is there; an error if the poller has ended. An answer that nobody waits
    /// for any more is dropped, there or here, and has to let go by that of what it stands for.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Poller) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        self.call(move |poller| {
            let told = question(poller);
            // It wakes a user's waker.
            contain("a waker", || drop(reply.send(told)));
        });
        answer
    }

    /// Stops accepting for a group; `done` is dropped when nothing will be accepted any more.
    pub(crate) fn unlisten(&self, group: Group, backlog: Backlog, done: Token) {
        self.call(move |poller| poller.unlisten(group, backlog, done));
    }

    /// Ends a group's connections: they may finish what they are doing until the deadline. `outstanding` is dropped when the
    /// last is gone, of those too that are outstanding.
    pub(crate) fn shut_down_group(
        &self,
        group: Group,
        deadline: Instant,
        outstanding: Arc<dyn Outstanding>,
    ) {
        self.call(move |poller| {
            let grace = deadline.saturating_duration_since(poller.clock.instant());
            let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            poller.driver.drain(&mut poller.engine, group, grace_ms);
            poller.shutdowns.push(GroupShutdown { group, deadline, outstanding, forced: false });
        });
    }

    /// Has the poller end, soon, and whatever it still has with it. `ended` is dropped then.
    pub(crate) fn stop(&self, ended: Option<Token>) {
        self.call(move |poller| {
            poller.stopping = true;
            poller.mourners.extend(ended);
        });
    }

    /// Has the poller end as soon as nobody uses the connections any more that no server owns. The answer: whether that is so
    /// now.
    pub(crate) fn retire(&self) -> oneshot::Receiver<bool> {
        let retire = |poller: &mut Poller| {
            poller.retiring = true;
            poller.driver.kept() == 0
        };
        self.ask(retire)
    }

    /// What it has measured, if it does.
    pub(crate) fn timings(&self) -> Option<Timings> {
        self.measured.as_ref().map(|measured| measured.read())
    }

    /// Whether it has ended, or is about to.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The poller of this thread, if it has one.
    pub(crate) fn current() -> Option<Arc<Handle>> {
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    /// Whether this thread has a poller.
    pub(crate) fn is_here() -> bool {
        Handle::with_current(|_| ()).is_some()
    }

    /// Asks the poller of this thread, if it has one.
    pub(crate) fn with_current<T>(ask: impl FnOnce(&Handle) -> T) -> Option<T> {
        CURRENT.try_with(|current| current.borrow().as_deref().map(ask)).ok().flatten()
    }

    /// Its tasks.
    pub(crate) fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }

    /// The pollers that it is one of.
    pub(crate) fn belong(&self, owner: Owner) {
        let _ = self.owner.set(owner);
    }

    pub(crate) fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.get()?.upgrade()
    }

    /// How many connections it has, or will have soon.
    pub(crate) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// The time that it lives by.
    pub(crate) fn clock(&self) -> &PollerClock {
        &self.clock
    }

    /// Leaves a command for its driver.
    pub(crate) fn post(&self, command: Command) {
        self.mailbox.post(command);
    }

    /// Whether this is the poller's own thread.
    pub(crate) fn is_local(&self) -> bool {
        self.mailbox.is_local()
    }

    /// Has the poller take a turn.
    pub(crate) fn wake(&self) {
        self.mailbox.wake();
    }

    /// Waits until the thread is over.
    pub(crate) fn join(&self) {
        let thread = lock(&self.thread).take();
        // In a destructor of the thread itself, when it does not run the poller any more, there is nobody to wait for.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id())
        {
            let _ = thread.join();
        }
    }

    /// Takes a socket on, connected or with its connect(2) under way.
    pub(crate) async fn adopt(
        self: Arc<Self>,
        socket: OwnedFd,
        limits: Limits,
        connecting: bool,
    ) -> io::Result<Connection> {
        self.check(&limits)?;
        let coming = Coming::to(&self);
        let open = move |poller: &mut Poller| {
            poller.arrived(coming);
            match connecting {
                true => poller.connect(socket, limits, Group::default()),
                false => poller.open(socket, limits, Group::default()),
            }
        };
        // If nobody waits any more, the connection is closed.
        self.ask(open).await.unwrap_or_else(|_| Err(over()))
    }

    /// Whether the engine can do what a connection's limits ask for.
    pub(crate) fn check(&self, limits: &Limits) -> io::Result<()> {
        #[cfg(feature = "zerocopy")]
        if limits.zerocopy_bytes.is_some() {
            self.mailbox.check_zerocopy()?;
        }
        let _ = limits;
        Ok(())
    }

    pub(crate) fn report(&self) -> &EngineReport {
        &self.report
    }

    pub(crate) fn stats(&self) -> Stats {
        self.published.read()
    }
}

/// A connection on its way to a poller, counted as one of its unless it comes to nothing.
pub(crate) struct Coming(Option<Arc<Handle>>);

impl Coming {
    pub(crate) fn to(poller: &Arc<Handle>) -> Coming {
        poller.load.fetch_add(1, Ordering::Relaxed);
        Coming(Some(poller.clone()))
    }

    /// It stays counted, and whoever has it now sees to that.
    pub(crate) fn arrive(mut self) {
        self.0 = None;
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if let Some(poller) = &self.0 {
            poller.load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the poller ended before it ran")
}

/// The error of whatever needs pollers that run, for good.
pub(crate) fn over() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the pollers have ended")
}

/// The error of whoever would wait on a poller's own thread.
pub(crate) fn deadlock() -> io::Error {
    let message = "a poller's own thread would wait for itself";
    io::Error::new(io::ErrorKind::Deadlock, message)
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("report", &self.report).finish_non_exhaustive()
    }
}
