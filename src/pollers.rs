//! Pollers that connections are spread over, and how they are started.

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::thread;
use std::time::Duration;

use duopoll_core::{Limits, MemoryLevel, Pool, WhenFull, on_poller_thread};
#[cfg(feature = "uring")]
use duopoll_uring::Features;
use pollster::block_on;
use socket2::{Socket, Type};

use crate::affinity;
use crate::connection::Connection;
use crate::engine::{Choice, Engine, EngineReport};
use crate::memory::MemoryOptions;
use crate::poller::{Handle, Poller, PollerSpec, ThreadStart, over};
use crate::stats::Stats;
use crate::timings::{TimingOptions, Timings};

/// Threads that move bytes, each with an engine of its own, and the connections that live on them: those of servers,
/// those that a [`Dialer`](crate::Dialer) dials, and those that a [`Listener`](crate::Listener) accepts.
///
/// Cheap to clone; clones are the same pollers. They live for as long as somebody has one of these, or a connection that was
/// dialed, adopted or [accepted](crate::Listener::accept) on them and is not closed: such a connection keeps its poller. When
/// the last is dropped, they end, which is waited for unless it happens on a poller's thread: what closed connections have left
/// is sent for at most a second more. A poller also
/// ends, alone, if its engine breaks: its connections end with `ECONNABORTED`, its listeners go on at the pollers that are
/// left, it gets no new connections, and [`Stats::failed_pollers`] counts it.
#[derive(Clone, Debug)]
#[must_use = "pollers that nobody uses end at once"]
pub struct Pollers {
    shared: Arc<Shared>,
}

thread_local! {
    /// The pollers that this thread has entered, with a number for each time.
    static ENTERED: RefCell<Vec<(u64, Pollers)>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, [`Pollers`] are those that its thread uses.
#[derive(Debug)]
#[must_use = "the thread leaves them when it is dropped"]
pub struct Entered {
    number: u64,
    /// On its thread.
    stays: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Dropped without the borrow: they may be the last.
        let left = ENTERED.try_with(|entered| {
            let mut entered = entered.borrow_mut();
            let place = entered.iter().position(|(number, _)| *number == self.number)?;
            Some(entered.remove(place))
        });
        drop(left);
    }
}

/// What clones have in common.
#[derive(Debug)]
struct Shared {
    options: PollerOptions,
    /// Where their connections have their blocks from; None: from the process's.
    pool: Option<Pool>,
    handles: RwLock<Handles>,
    turn: AtomicUsize,
}

#[derive(Debug, Default)]
struct Handles {
    all: Vec<Arc<Handle>>,
    /// They were told to end, and there will be no more.
    stopped: bool,
}

/// Which poller gets the next connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Balance {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// The one with the fewest connections.
    FewestConnections,
}

/// Pollers that may be gone.
#[cfg(feature = "metrics")]
pub(crate) struct WeakPollers(Weak<Shared>);

#[cfg(feature = "metrics")]
impl WeakPollers {
    pub(crate) fn upgrade(&self) -> Option<Pollers> {
        self.0.upgrade().map(|shared| Pollers { shared })
    }
}

/// How pollers are started: see [`Pollers::options`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PollerOptions {
    choice: Choice,
    count: Option<usize>,
    balance: Balance,
    pinned: bool,
    name: Option<String>,
    on_thread_start: Option<ThreadStart>,
    memory: MemoryOptions,
    timing: TimingOptions,
}

impl PollerOptions {
    /// Which engine they run on. Default: [`Engine::Auto`].
    pub fn engine(mut self, engine: Engine) -> PollerOptions {
        self.choice.engine = engine;
        self
    }

    /// What may be used of io_uring, where the kernel proves to have it. Default: what the environment variable
    /// `DUOPOLL_URING` says, and all of it otherwise.
    #[cfg(feature = "uring")]
    pub fn uring(mut self, features: Features) -> PollerOptions {
        self.choice.uring = Some(features);
        self
    }

    /// The most bytes that the connections of one of them may have with the kernel for sends without a copy; what is
    /// beyond them is copied. Default: 64 MiB.
    #[cfg(feature = "zerocopy")]
    pub fn zerocopy_pinned_bytes(mut self, bytes: usize) -> PollerOptions {
        self.choice.pinned_bytes = Some(bytes);
        self
    }

    /// How many, each a thread. Default: what the machine can run at once.
    pub fn count(mut self, count: usize) -> PollerOptions {
        self.count = Some(count);
        self
    }

    /// Which of them gets the next connection. Default: [`Balance::RoundRobin`].
    pub fn balance(mut self, balance: Balance) -> PollerOptions {
        self.balance = balance;
        self
    }

    /// Whether each is bound to a CPU of its own, in turn, among those that the process may use. Default: no.
    pub fn pinned(mut self, pinned: bool) -> PollerOptions {
        self.pinned = pinned;
        self
    }

    /// What their threads are called, with a number behind it. The kernel shows the first 15 bytes. Default:
    /// `duopoll-`.
    pub fn name(mut self, prefix: impl Into<String>) -> PollerOptions {
        self.name = Some(prefix.into());
        self
    }

    /// Called on the thread of each before it runs. What is returned lives as long as the poller runs, and is dropped on the same
    /// thread when all its tasks and connections are gone. So handlers can be within another runtime's context:
    ///
    /// ```no_run
    /// # use duopoll::{Connection, EventLoop, Listener};
    /// use std::sync::LazyLock;
    /// use tokio::runtime::Runtime;
    ///
    /// static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    ///
    /// let server = EventLoop::builder()
    ///     .on_thread_start(|| RUNTIME.enter())
    ///     .on_request(async |connection: &mut Connection| {
    ///         connection.next(1).await?;
    ///         // On a thread of tokio's, with tokio's timer.
    ///         let answer = tokio::spawn(async {
    ///             tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    ///             42
    ///         });
    ///         connection.write(&[answer.await?])
    ///     })
    ///     .serve(Listener::bind("127.0.0.1:8080")?)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// Of tokio's runtime: its timers are its own, and do not stand still when [time is paused](crate::time::pause); what is
    /// given to `tokio::spawn` runs on its threads, where there is no poller; and its `block_on` would hold up the poller, as
    /// whatever blocks does.
    ///
    /// If it panics the poller is not started.
    pub fn on_thread_start<F, G>(mut self, start: F) -> PollerOptions
    where
        F: Fn() -> G + Send + Sync + 'static,
        G: 'static,
    {
        self.on_thread_start = Some(ThreadStart::new(move || Box::new(start())));
        self
    }

    /// The most bytes of memory that their connections may hold together: what was received and is not read, what is to be sent, what
    /// the kernel has, and what [slices](crate::Slice) keep alive, in blocks with what is not used of them. Memory that is sent as it lies
    /// ([`push`](crate::Writer::push) of a `Vec` or `Bytes`) and what a program keeps elsewhere do not count, nor do the kernel's own
    /// buffers. Default: none of their own; they share that of the [process](crate::Pool::global), which is half of the memory that it may
    /// have.
    ///
    /// - A connection may hold a share of what is free in each direction, and at most what its [`Limits`] say: so those that hold
    ///   most are received from no longer, and their writers wait, before others notice anything.
    /// - Above seven eighths connections are accepted one at a time, until it is less than three quarters.
    /// - What would be more than the budget is refused: [`when_full`](PollerOptions::when_full) says who goes then.
    ///
    /// [`Stats`] count what happens; [`on_memory_level`](PollerOptions::on_memory_level) tells of it.
    pub fn memory_budget(mut self, bytes: usize) -> PollerOptions {
        self.memory.budget_bytes = Some(bytes);
        self
    }

    /// Who goes when the memory budget is used up, or the kernel has no memory. Default: [`WhenFull::Refuse`].
    pub fn when_full(mut self, when_full: WhenFull) -> PollerOptions {
        self.memory.when_full = when_full;
        self
    }

    /// Called when the memory budget has come to another [level](MemoryLevel), on the thread of a poller that sees it: once, if
    /// several share the budget. That it is no longer [`Full`](MemoryLevel::Full) is told a second after the last refusal. It must not block; a
    /// panic of its is contained.
    pub fn on_memory_level<F>(mut self, callback: F) -> PollerOptions
    where
        F: Fn(MemoryLevel) + Send + Sync + 'static,
    {
        self.memory.on_level = Some(Arc::new(callback));
        self
    }

    /// Whether they measure how long turns and handlers take, and how late timers are: see [`Pollers::timings`]. Each then reads the clock
    /// twice a turn and once for each task that it polls. Default: no.
    pub fn timings(mut self, measured: bool) -> PollerOptions {
        self.timing.measures = measured;
        self
    }

    /// Has a handler or task that holds its poller for longer, without waiting for anything, be logged as a warning, with the id and the
    /// peer of its connection: once a second at most. It costs what [`timings`](PollerOptions::timings) cost. Default: none.
    pub fn slow_handler(mut self, bound: Duration) -> PollerOptions {
        self.timing.slow = Some(bound);
        self
    }

    /// Starts them.
    ///
    /// # Errors
    /// What the engine says if one cannot be started, or the kernel if one cannot be pinned;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a count of 0.
    pub fn start(self) -> io::Result<Pollers> {
        let (pollers, count) = self.unstarted()?;
        pollers.grow(count)?;
        Ok(pollers)
    }

    /// With so many of them, if nobody has said how many.
    pub(crate) fn count_or(mut self, count: usize) -> PollerOptions {
        self.count = self.count.or(Some(count));
        self
    }

    /// None yet, and how many there shall be.
    fn unstarted(self) -> io::Result<(Pollers, usize)> {
        let count =
            self.count.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "0 pollers do nothing"));
        }
        let pool = self.memory.pool();
        let (handles, turn) = (RwLock::default(), AtomicUsize::new(0));
        let shared = Shared { options: self, pool, handles, turn };
        Ok((Pollers { shared: Arc::new(shared) }, count))
    }

    /// As [`start`](PollerOptions::start), but for the first, which the calling thread is to run.
    pub(crate) fn start_here(self) -> io::Result<(Pollers, Poller)> {
        let (pollers, count) = self.unstarted()?;
        let others = (1..count).map(|index| pollers.shared.start_one(index));
        pollers.add(others)?;
        let options = &pollers.shared.options;
        // Last, since the others are bound to what this thread may run on.
        if let Some(cpu) = options.cpu(0)? {
            affinity::pin(cpu)?;
        }
        let poller = Poller::new(&pollers.shared.spec())?;
        pollers.own(poller.handle());
        pollers.shared.handles_mut().all.insert(0, poller.handle().clone());
        Ok((pollers, poller))
    }

    fn cpu(&self, index: usize) -> io::Result<Option<usize>> {
        let cpus = if self.pinned { affinity::cpus()? } else { Vec::new() };
        Ok(cpus.get(index % cpus.len().max(1)).copied())
    }
}

impl Shared {
    fn start_one(&self, index: usize) -> io::Result<Arc<Handle>> {
        let cpu = self.options.cpu(index)?;
        let prefix = self.options.name.as_deref().unwrap_or("duopoll-");
        Handle::start(format!("{prefix}{index}"), self.spec(), cpu)
    }

    fn spec(&self) -> PollerSpec {
        let PollerOptions { choice, on_thread_start, memory, timing, .. } = &self.options;
        PollerSpec {
            choice: *choice,
            on_thread_start: on_thread_start.clone(),
            memory: memory.clone(),
            timing: *timing,
            pool: self.pool.clone(),
        }
    }
}

impl Pollers {
    /// Options, all with defaults.
    pub fn options() -> PollerOptions {
        PollerOptions::default()
    }

    /// The pollers of the process, with [`Engine::Auto`] and as many pollers as the machine can run threads at once.
    /// Started at its first use, and never ended but by [`stop`](Pollers::stop), after which there are new ones.
    ///
    /// # Errors
    /// As for [`PollerOptions::start`]; the next call tries again.
    pub fn global() -> io::Result<Pollers> {
        static GLOBAL: Mutex<Option<Pollers>> = Mutex::new(None);
        let mut global = GLOBAL.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have stopped them.
        if let Some(pollers) = global.as_ref().filter(|pollers| pollers.runs()) {
            return Ok(pollers.clone());
        }
        Ok(global.insert(Pollers::options().start()?).clone())
    }

    /// Those of the poller that the calling thread runs: in a handler, a task, and within [`block_on`](crate::task::block_on).
    /// Elsewhere those that it has [entered](Pollers::enter).
    pub fn current() -> Option<Pollers> {
        match Handle::current() {
            Some(handle) => Some(Pollers { shared: handle.owner()?.downcast().ok()? }),
            None => {
                ENTERED.with_borrow(|entered| entered.last().map(|(_, pollers)| pollers.clone()))
            }
        }
    }

    /// Has whatever needs pollers on this thread, and is not told which, use these and not the [global ones](Pollers::global):
    /// [timers](crate::time), a [`Dialer`](crate::Dialer), [`Listener::accept`](crate::Listener::accept), [`AsyncFd`](crate::AsyncFd),
    /// sockets of [`udp`](crate::udp). Until what is returned is dropped; it may be entered more than once.
    pub fn enter(&self) -> Entered {
        ENTERED.with_borrow_mut(|entered| {
            let number = entered.last().map_or(0, |(number, _)| number + 1);
            entered.push((number, self.clone()));
            Entered { number, stays: PhantomData }
        })
    }

    /// Those of this thread, unless they have ended, else the global ones.
    pub(crate) fn nearest() -> io::Result<Pollers> {
        match Pollers::current() {
            Some(pollers) if pollers.runs() => Ok(pollers),
            _ => Pollers::global(),
        }
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn downgrade(&self) -> WeakPollers {
        WeakPollers(Arc::downgrade(&self.shared))
    }

    /// Whether one of them has ended, or is about to.
    pub(crate) fn have_ended(&self) -> bool {
        self.shared.handles().iter().any(|handle| handle.has_ended())
    }

    /// How many there are, with those that have failed.
    pub fn count(&self) -> usize {
        self.shared.handles().len()
    }

    /// Starts more of them, which get new connections from now on. Those that are open stay where they are. Listeners with
    /// [`reuse_port`](crate::ListenerOptions::reuse_port), whose connections stay on the poller that accepted
    /// them, bring none to the new pollers.
    ///
    /// # Errors
    /// As for [`PollerOptions::start`]; those that had been started by then stay. [`NotConnected`](io::ErrorKind::NotConnected)
    /// when they have been stopped.
    pub fn grow(&self, more: usize) -> io::Result<()> {
        // Two who let it grow at once may choose the same name, or CPU.
        self.add((0..more).map(|_| self.shared.start_one(self.count())))
    }

    /// What each of them runs on, and why.
    pub fn engine_reports(&self) -> Vec<EngineReport> {
        self.shared.handles().iter().map(|handle| handle.report().clone()).collect()
    }

    /// The figures of each, as of the end of its last turn. Waits for nobody, and may be called anywhere.
    pub fn stats_of_each(&self) -> Vec<Stats> {
        self.shared.handles().iter().map(|handle| handle.stats()).collect()
    }

    /// Their figures, added up, and those of the process. Waits for nobody, and may be called anywhere: in a handler,
    /// what its own turn has done is not among them yet.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for one in self.stats_of_each() {
            stats += one;
        }
        stats.set_pool(self.shared.pool.as_ref().unwrap_or_else(|| Pool::global()));
        stats.set_process();
        stats
    }

    /// How long their turns and tasks take; None unless they were asked to [measure](PollerOptions::timings) it. Waits for nobody.
    pub fn timings(&self) -> Option<Timings> {
        let mut all = self.timings_of_each().into_iter();
        let mut sum = all.next()?;
        all.for_each(|one| sum += &one);
        Some(sum)
    }

    /// The same of each; empty unless they were asked to.
    pub fn timings_of_each(&self) -> Vec<Timings> {
        self.shared.handles().iter().filter_map(|handle| handle.timings()).collect()
    }

    /// For tests: returns when what each of them had done before is among its figures. Not for a poller's own thread.
    #[doc(hidden)]
    pub fn settle(&self) {
        for handle in self.shared.handles() {
            // None: it has ended, and has published its last ones.
            let _ = block_on(handle.ask(|poller| poller.publish()));
        }
    }

    /// Takes over a connected stream socket: a std `TcpStream` or `UnixStream`, or any descriptor of the kind.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no stream socket, `ENOTCONN` if it is not connected.
    pub async fn adopt(&self, socket: impl Into<OwnedFd>) -> io::Result<Connection> {
        let socket = Socket::from(socket.into());
        if socket.r#type()? != Type::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a stream socket"));
        }
        socket.peer_addr()?;
        socket.set_nonblocking(true)?;
        let connection = self.choose().adopt(socket.into(), Limits::default(), false).await?;
        connection.control().expose();
        Ok(connection)
    }

    /// Ends them now, whoever has them, and whatever lives on them: connections end with `ECONNABORTED`, what was flushed is
    /// sent for at most a second more, and what needs pollers fails from now on. Waits until they have ended, unless it is
    /// called on a poller's thread.
    pub fn stop(&self) {
        self.begin_stop().iter().for_each(|handle| handle.stop(None));
        // No poller waits for another, which may wait for it.
        if !on_poller_thread() {
            self.join();
        }
    }

    /// No more are started from now on. Those that there are, which are to be told to end.
    pub(crate) fn begin_stop(&self) -> Vec<Arc<Handle>> {
        let mut handles = self.shared.handles_mut();
        handles.stopped = true;
        handles.all.clone()
    }

    /// The one whose turn it is: one that runs, if there is any.
    pub(crate) fn choose(&self) -> Arc<Handle> {
        let handles = self.shared.handles.read().unwrap_or_else(PoisonError::into_inner);
        self.choose_of(&handles.all)
    }

    /// As [`choose`](Pollers::choose), among those.
    pub(crate) fn choose_of(&self, handles: &[Arc<Handle>]) -> Arc<Handle> {
        let Shared { options, turn, .. } = &*self.shared;
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let first = match options.balance {
            Balance::RoundRobin | Balance::FewestConnections => turn,
            Balance::Random => scattered(turn),
        };
        // Beginning with the one whose turn it is, so that equals take turns.
        let in_turn = (0..handles.len()).map(|offset| &handles[(first + offset) % handles.len()]);
        let mut candidates = in_turn.clone().filter(|handle| !handle.has_ended());
        let chosen = match options.balance {
            Balance::RoundRobin | Balance::Random => candidates.next(),
            Balance::FewestConnections => candidates.min_by_key(|handle| handle.load()),
        };
        chosen.unwrap_or_else(|| &handles[first % handles.len()]).clone()
    }

    /// Whether one of them runs. Nobody's turn is taken by that.
    fn runs(&self) -> bool {
        self.handles().iter().any(|handle| !handle.has_ended())
    }

    /// As [`choose`](Pollers::choose), if there is one that runs.
    pub(crate) fn running(&self) -> Option<Arc<Handle>> {
        let chosen = self.choose();
        (!chosen.has_ended()).then_some(chosen)
    }

    /// Whether the engines can do what a connection's limits ask for.
    pub(crate) fn check(&self, limits: &Limits) -> io::Result<()> {
        self.handles().iter().try_for_each(|handle| handle.check(limits))
    }

    pub(crate) fn handles(&self) -> Vec<Arc<Handle>> {
        self.shared.handles()
    }

    fn add(&self, started: impl Iterator<Item = io::Result<Arc<Handle>>>) -> io::Result<()> {
        for handle in started {
            let handle = handle?;
            self.own(&handle);
            let mut handles = self.shared.handles_mut();
            if handles.stopped {
                handle.stop(None);
                return Err(over());
            }
            handles.all.push(handle);
        }
        Ok(())
    }

    /// Has a poller know whose it is.
    fn own(&self, handle: &Handle) {
        let owner: Weak<Shared> = Arc::downgrade(&self.shared);
        handle.belong(owner);
    }

    /// Waits until they have ended, which they have been told to. Not on a poller's thread.
    pub(crate) fn join(&self) {
        self.shared.handles().iter().for_each(|handle| handle.join());
    }
}

impl Shared {
    fn handles_mut(&self) -> RwLockWriteGuard<'_, Handles> {
        self.handles.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> Vec<Arc<Handle>> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner).all.clone()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let handles = self.handles();
        let ending: Vec<_> = handles.iter().map(|handle| handle.retire()).collect();
        // No poller waits for another, which may wait for it.
        if on_poller_thread() {
            return;
        }
        for (handle, ends) in handles.iter().zip(ending) {
            // An error: it has ended already.
            if block_on(ends).unwrap_or(true) {
                handle.join();
            }
        }
    }
}

/// The numbers in a random order (splitmix64).
fn scattered(number: usize) -> usize {
    let mut z = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize
}
