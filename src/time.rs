//! Time on the pollers: sleeping, timeouts and intervals.
//!
//! A timer lies in the wheel of a poller: that of the thread on which it is first polled. Where there is none, it is one of those
//! that the thread has [entered](crate::Pollers::enter), or else of the [global ones](crate::Pollers::global), which are started
//! then, with as many threads as the machine can run. It goes off when its time has come and never before, with a
//! resolution of one millisecond.
//!
//! ```no_run
//! # async fn example(connection: &mut duopoll::Connection) -> std::io::Result<()> {
//! use duopoll::time::{sleep, timeout};
//! use std::time::Duration;
//!
//! sleep(Duration::from_millis(100)).await;
//! let greeting = timeout(Duration::from_secs(1), connection.next(16)).await??;
//! # Ok(()) }
//! ```

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use duopoll_core::{Clock, Command, Tick, Token, timers};
use pin_project_lite::pin_project;

use crate::poller::Handle;
use crate::pollers::Pollers;

/// Farther away than anything that is waited for, and near enough to be added to the time of day.
pub(crate) const FAR: Duration = Duration::from_secs(1 << 32);

/// The time that the poller of this thread lives by: that of the machine, unless it is [paused](pause).
pub fn now() -> Instant {
    Handle::with_current(|poller| poller.clock().instant()).unwrap_or_else(Instant::now)
}

/// Has the time of this thread's poller stand still, for tests: all timers and timeouts of its tasks and connections live by
/// it. While everybody sleeps it jumps to the next timer, so a test of a day takes no longer than what happens in it;
/// a job of [`spawn_blocking`](crate::task::spawn_blocking) holds it up. What other threads, processes and the kernel do
/// takes its time, and the clock does not wait for it.
///
/// ```
/// use duopoll::{task, time};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// task::block_on(async {
///     time::pause()?;
///     let begin = time::now();
///     time::sleep(Duration::from_secs(86_400)).await;
///     assert_eq!(time::now() - begin, Duration::from_secs(86_400));
///     Ok(())
/// })?
/// # }
/// ```
///
/// Points in time have to be made with [`now`] then. A server and its clients live by the same time if they are on this poller:
///
/// ```
/// use duopoll::{Connection, Dialer, EventLoop, Listener, Pollers, task, time};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// task::block_on(async {
///     time::pause()?;
///     let pollers = Pollers::current().expect("this thread is a poller");
///     let service = EventLoop::builder().on(pollers).on_request(async |connection: &mut Connection| {
///         let request = connection.next(1).await?;
///         time::sleep(Duration::from_secs(3600)).await;
///         connection.push(request);
///         connection.flush().await
///     });
///     let server = service.serve_async(Listener::bind("127.0.0.1:0")?).await?;
///     let mut client = Dialer::new().dial_addr(server.local_addr().clone()).await?;
///     client.write(b"x")?;
///     client.flush().await?;
///     let reply = time::timeout(Duration::from_secs(7200), client.next(1)).await??;
///     assert_eq!(reply, b"x");
///     server.shutdown_async(Duration::from_secs(60)).await;
///     Ok(())
/// })?
/// # }
/// ```
///
/// # Errors
/// [`Unsupported`](io::ErrorKind::Unsupported) where there is no poller on this thread, or several that would each have a time of
/// their own; [`task::block_on`](crate::task::block_on) has one.
pub fn pause() -> io::Result<()> {
    alone()?.clock().pause();
    Ok(())
}

/// Has the time go on from where it stands.
///
/// # Errors
/// [`Unsupported`](io::ErrorKind::Unsupported) where there is no poller on this thread.
pub fn resume() -> io::Result<()> {
    let poller = Handle::current().ok_or_else(no_time)?;
    if poller.clock().stands() {
        poller.clock().resume();
    }
    Ok(())
}

/// Moves the time, which is [paused](pause), by so much: timer by timer, and whoever is woken by one has his turn before the
/// next goes off. Returns when that is done. Dropping the future leaves it where it is by then.
///
/// # Errors
/// As for [`pause`]; [`InvalidInput`](io::ErrorKind::InvalidInput) if it is not paused.
pub async fn advance(duration: Duration) -> io::Result<()> {
    let poller = alone()?;
    if !poller.clock().stands() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the time is not paused"));
    }
    let target = poller.clock().instant() + duration.min(FAR);
    let _moves = poller.clock().aim(target);
    Sleep::on(poller, target).await;
    Ok(())
}

/// The poller of this thread, if it is the only one of its kind.
fn alone() -> io::Result<Arc<Handle>> {
    let alone = Pollers::current().is_some_and(|pollers| pollers.count() == 1);
    let poller = if alone { Handle::current() } else { None };
    poller.ok_or_else(no_time)
}

fn no_time() -> io::Error {
    let why = "only a thread with a single poller has a time of its own";
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// Waits for so long.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(now() + duration.min(FAR))
}

/// Waits until then.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::new(None, deadline)
}

/// A wait until a point in time. Cheap to make, to [reset](Sleep::reset) and to drop, anywhere; on its poller's thread it
/// allocates nothing.
///
/// Its timer goes off between two turns of its poller, so a task that polls it again and again without ever waiting does not see it end.
///
/// # Cancellation
/// Dropping it takes its timer back.
///
/// # Panics
/// Polling one where there is no poller, and none can be started.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Sleep {
    deadline: Instant,
    /// The same by its poller's clock.
    due: Instant,
    /// Its poller is not that of the thread which waits, and may live by another time.
    elsewhere: bool,
    /// It lay ahead when its timer was set: it has come when that has gone off.
    ahead: bool,
    poller: Option<Arc<Handle>>,
    timer: Timer,
}

/// What a poller knows of it.
enum Timer {
    None,
    /// Set on the poller's own thread.
    Here(Token),
    /// Set from another thread.
    Elsewhere(Arc<Remote>),
}

/// A timer that was set from another thread, and whom it wakes.
#[derive(Default)]
struct Remote(Mutex<RemoteState>);

#[derive(Default)]
struct RemoteState {
    waker: Option<Waker>,
    /// Once the poller has set it.
    timer: Option<Token>,
    /// Nobody waits any more.
    given_up: bool,
    /// It has gone off, or its poller has ended: nobody is woken any more.
    over: bool,
}

impl Sleep {
    /// A wait that lives on that poller.
    pub(crate) fn on(poller: Arc<Handle>, deadline: Instant) -> Sleep {
        Sleep::new(Some(poller), deadline)
    }

    fn new(poller: Option<Arc<Handle>>, deadline: Instant) -> Sleep {
        let timer = Timer::None;
        Sleep { deadline, due: deadline, elsewhere: false, ahead: false, poller, timer }
    }

    /// When it ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Has it end at another time, also if it has ended already. It must be polled for whoever waits to be woken.
    pub fn reset(&mut self, deadline: Instant) {
        (self.deadline, self.due, self.ahead) = (deadline, deadline, false);
        let Some(poller) = &self.poller else { return };
        if self.elsewhere {
            self.due = poller.clock().translate(deadline);
        }
        match &self.timer {
            Timer::Here(timer) if poller.is_local() => {
                timers::reset(*timer, poller.clock().tick_of(self.due));
            }
            _ => self.forget(),
        }
    }

    /// Whether its time has come.
    pub fn is_elapsed(&self) -> bool {
        let clock = self.poller.as_ref().map(|poller| poller.clock());
        clock.map_or(now() >= self.deadline, |clock| clock.now() >= clock.tick_of(self.due))
    }

    /// The poller on which it waits, the one of this thread if it has none yet, and when it ends by that one's clock.
    fn poller(&mut self) -> (&Arc<Handle>, Instant) {
        if self.poller.as_ref().is_none_or(|poller| poller.has_ended()) {
            let poller = self.find_poller();
            self.poller = Some(poller);
        }
        match &self.poller {
            Some(poller) => (poller, self.due),
            None => unreachable!("it was found"),
        }
    }

    #[inline]
    fn find_poller(&mut self) -> Arc<Handle> {
        self.forget();
        let poller = Handle::current().filter(|poller| !poller.has_ended());
        self.elsewhere = poller.is_none();
        let poller = poller.unwrap_or_else(|| match Pollers::nearest() {
            Ok(pollers) => pollers.choose(),
            Err(error) => panic!("there is no poller to wait on: {error}"),
        });
        // Elsewhere it is as late as the machine says.
        self.due = match self.elsewhere {
            true => poller.clock().translate(self.deadline),
            false => self.deadline,
        };
        poller
    }

    fn forget(&mut self) {
        let timer = std::mem::replace(&mut self.timer, Timer::None);
        let Some(poller) = &self.poller else { return };
        match timer {
            Timer::None => {}
            Timer::Here(timer) if poller.is_local() => timers::forget(timer),
            Timer::Here(timer) => poller.post(Command::Forget(timer)),
            Timer::Elsewhere(remote) => remote.give_up(poller),
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let (Timer::Here(timer), true, Some(poller)) = (&self.timer, self.ahead, &self.poller) {
            // Most polls are somebody else's wake-ups.
            if poller.is_local() && timers::wake_by(*timer, cx.waker()) {
                return Poll::Pending;
            }
        }
        if let Timer::Elsewhere(remote) = &self.timer {
            // First: whether it has gone off since is asked behind it.
            if !remote.wake_by(cx.waker()) {
                self.timer = Timer::None;
            }
        }
        let (poller, due) = self.poller();
        let (now, deadline) = (poller.clock().now(), poller.clock().tick_of(due));
        let is_local = poller.is_local();
        if now >= deadline {
            self.forget();
            return Poll::Ready(());
        }
        if is_local {
            let known = match self.timer {
                Timer::Here(timer) => Some(timer),
                Timer::Elsewhere(_) => {
                    self.forget();
                    None
                }
                Timer::None => None,
            };
            self.timer = Timer::Here(timers::set(known, deadline, now, cx.waker()));
            self.ahead = true;
            return Poll::Pending;
        }
        if let Timer::Elsewhere(_) = &self.timer {
            return Poll::Pending;
        }
        self.forget();
        let remote = Arc::new(Remote::default());
        let _ = remote.wake_by(cx.waker());
        self.timer = Timer::Elsewhere(remote.clone());
        // Not run, if the poller ends: then the remote is dropped with its call, which wakes.
        let begun = Begun(Some(remote));
        self.poller().0.call(move |_| begun.begin(deadline, now));
        Poll::Pending
    }
}

impl Remote {
    /// False if there will be nobody who wakes.
    fn wake_by(&self, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut state = self.state();
        let before = state.waker.replace(waker);
        let over = state.over;
        drop(state);
        drop(before);
        !over
    }

    fn give_up(&self, poller: &Handle) {
        let (waker, timer) = {
            let mut state = self.state();
            state.given_up = true;
            (state.waker.take(), state.timer.take())
        };
        drop(waker);
        if let Some(timer) = timer {
            poller.post(Command::Forget(timer));
        }
    }

    fn state(&self) -> MutexGuard<'_, RemoteState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Remote {
    fn wake(self: Arc<Self>) {
        let waker = {
            let mut state = self.state();
            (state.timer, state.over) = (None, true);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A timer on its way to its poller. If it does not arrive, whoever waits is woken, and looks for another.
struct Begun(Option<Arc<Remote>>);

impl Begun {
    fn begin(mut self, deadline: Tick, now: Tick) {
        let Some(remote) = self.0.take() else { return };
        let waker = Waker::from(remote.clone());
        let mut state = remote.state();
        if !state.given_up {
            state.timer = Some(timers::set(None, deadline, now, &waker));
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(remote) = self.0.take() {
            remote.wake();
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// Waits for a future, but no longer than that.
pub fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    Timeout { future, sleep: sleep(duration) }
}

/// Waits for a future, but no longer than until then.
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    Timeout { future, sleep: sleep_until(deadline) }
}

pin_project! {
    /// A future that is not waited for any longer than until a point in time: [`Elapsed`] then, and the future is dropped with
    /// this one. It is polled first, so one that is ready is never late.
    #[must_use = "a future does nothing unless it is awaited"]
    #[derive(Debug)]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        sleep: Sleep,
    }
}

impl<F: Future> Timeout<F> {
    /// As [`timeout_at`], on that poller.
    pub(crate) fn on(poller: Arc<Handle>, deadline: Instant, future: F) -> Timeout<F> {
        Timeout { future, sleep: Sleep::on(poller, deadline) }
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(value) = this.future.poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(this.sleep).poll(cx).map(|()| Err(Elapsed(())))
    }
}

/// The time was over before the future was ready. As an [`io::Error`] it is [`TimedOut`](io::ErrorKind::TimedOut).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed(());

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time is over")
    }
}

impl Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(_: Elapsed) -> io::Error {
        io::ErrorKind::TimedOut.into()
    }
}

/// What an [`Interval`] does when a tick was missed, since nobody waited for it in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissedTicks {
    /// Those that were missed follow at once, one after the other, until it is in time again.
    #[default]
    Burst,
    /// The period begins anew with the tick that came late.
    Delay,
    /// Those that were missed are left out; the next one is in time.
    Skip,
}

/// Ticks: the first at once, each of the others a period after the one before.
///
/// # Panics
/// For a period of zero.
pub fn interval(period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval needs a period");
    let period = period.min(FAR);
    let sleep = sleep_until(now());
    Interval { period, missed: MissedTicks::Burst, sleep, in_a_row: 0 }
}

/// Ticks in time; see [`interval`].
#[derive(Debug)]
pub struct Interval {
    period: Duration,
    missed: MissedTicks,
    sleep: Sleep,
    /// Ticks that nobody had to wait for.
    in_a_row: u32,
}

/// Ticks that are given in a row to a task that is always late, before others have their turn.
const TICKS_MAX: u32 = 16;

impl Interval {
    /// What it does about ticks that were missed. Default: [`MissedTicks::Burst`].
    pub fn missed_ticks(mut self, missed: MissedTicks) -> Interval {
        self.missed = missed;
        self
    }

    /// Waits for the next tick, and gives the time for which it was due.
    ///
    /// # Cancellation
    /// Dropping the future loses no tick.
    pub async fn tick(&mut self) -> Instant {
        poll_fn(|cx| self.poll_tick(cx)).await
    }

    /// As [`tick`](Interval::tick).
    pub fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        if Pin::new(&mut self.sleep).poll(cx).is_pending() {
            self.in_a_row = 0;
            return Poll::Pending;
        }
        self.in_a_row += 1;
        if self.in_a_row > TICKS_MAX {
            self.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (due, now) = (self.sleep.deadline(), now());
        let late = now.saturating_duration_since(due);
        let next = match self.missed {
            MissedTicks::Burst => due + self.period,
            MissedTicks::Delay if late < self.period => due + self.period,
            MissedTicks::Delay => now + self.period,
            MissedTicks::Skip => {
                let since = late.as_nanos() % self.period.as_nanos();
                let left = self.period - Duration::from_nanos(since as u64);
                if late < self.period { due + self.period } else { now + left }
            }
        };
        self.sleep.reset(next);
        Poll::Ready(due)
    }
}
