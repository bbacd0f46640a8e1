//! Tasks on the pollers: futures that run beside the handlers, and need not be `Send`.
//!
//! A task belongs to a poller, runs on its thread alone, and ends with it. It takes its turn with the connections: a
//! task that is always ready is polled once a turn.
//!
//! ```no_run
//! use duopoll::{Connection, EventLoop, Listener, task, time};
//! use std::time::Duration;
//!
//! let server = EventLoop::builder()
//!     .on_request(async |connection: &mut Connection| {
//!         connection.next(1).await?;
//!         let answer = task::spawn_local(async {
//!             time::sleep(Duration::from_millis(10)).await;
//!             42
//!         });
//!         connection.write(&[answer.await?])
//!     })
//!     .serve(Listener::bind("127.0.0.1:8080")?)?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod group;

use std::future::Future;
use std::io;
use std::panic;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

pub use duopoll_core::task::{AbortHandle, JoinError, JoinHandle};
use duopoll_core::{on_poller_thread, task};

use crate::caught::caught;
use crate::poller::{Handle, Main, deadlock, over};
use crate::pollers::{PollerOptions, Pollers};
pub use group::TaskGroup;

/// Starts a task on the poller that the calling thread runs.
///
/// # Panics
/// If this is not the thread of a poller; [`Pollers::spawn`] works anywhere.
pub fn spawn_local<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
{
    let Some(poller) = Handle::current() else {
        panic!("spawn_local has to be called on the thread of a poller");
    };
    let (start, handle) = task::spawn();
    start.on(poller.executor(), future);
    handle
}

/// Does something that blocks, on a thread of a pool: at most 500 in the process, or what the environment variable
/// `BLOCKING_MAX_THREADS` says, that end when they are not needed.
///
/// A panic is an error of the handle, as with tasks. What has begun cannot be aborted, and nobody waits for it: not the end
/// of the pollers, nor that of [`block_on`]. What is aborted before is told when it would have begun.
pub fn spawn_blocking<F, T>(work: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let (start, handle) = task::spawn();
    let busy = Handle::current().map(Busy::new);
    blocking::unblock(move || {
        start.here(work);
        drop(busy);
    })
    .detach();
    handle
}

/// Starts a task on the poller of this thread, or one of those that it would use.
pub(crate) fn spawn_near<F>(future: F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    if Handle::is_here() {
        spawn_local(future);
    } else {
        Pollers::nearest()?.spawn(move || future);
    }
    Ok(())
}

/// Work for a poller elsewhere, which holds up its time if that stands.
struct Busy(Arc<Handle>);

impl Busy {
    fn new(poller: Arc<Handle>) -> Busy {
        poller.clock().work();
        Busy(poller)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.clock().rest();
        if self.0.clock().stands() {
            self.0.wake();
        }
    }
}

/// Lets everybody else of this poller have a turn.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs a future on a poller of the calling thread: for clients, tools and tests. See [`PollerOptions::block_on`].
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// duopoll::task::block_on(async {
///     let mut connection = duopoll::Dialer::new().dial("localhost:6379").await?;
///     connection.write(b"PING\r\n")?;
///     connection.flush().await?;
///     println!("{:?}", connection.until(b'\n', 1024).await?);
///     Ok(())
/// })?
/// # }
/// ```
///
/// # Errors
/// As for [`PollerOptions::block_on`].
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Pollers::options().block_on(future)
}

impl PollerOptions {
    /// Makes the calling thread a poller until the future is ready, which runs on it with the tasks that it starts. They end
    /// with it, and connections that are left. What was flushed is sent for at most a second more.
    ///
    /// Of more than one [poller](PollerOptions::count), the others have threads of their own. Default here: one. Within it,
    /// they are [`Pollers::current`].
    ///
    /// On io_uring the kernel takes its ring down behind it, and may interrupt one blocking call of the thread meanwhile, as a
    /// signal does: it fails with [`Interrupted`](io::ErrorKind::Interrupted).
    ///
    /// # Errors
    /// As for [`start`](PollerOptions::start); [`Deadlock`](io::ErrorKind::Deadlock) if the thread runs a poller already; what
    /// has broken the engine before the future was ready.
    ///
    /// # Panics
    /// If the future does.
    pub fn block_on<F: Future>(self, future: F) -> io::Result<F::Output> {
        if on_poller_thread() {
            return Err(deadlock());
        }
        let (pollers, poller) = self.count_or(1).start_here()?;
        let woken =
            Arc::new(Woken { handle: poller.handle().clone(), woken: AtomicBool::new(true) });
        let waker = Waker::from(woken.clone());
        let (ran, output) = {
            let mut main = Blocked { future: pin!(future), woken, waker, output: None };
            (poller.run(|_| (), &mut main), main.output)
        };
        drop(pollers);
        match output {
            Some(output) => Ok(output.unwrap_or_else(|panic| panic::resume_unwind(panic))),
            None => Err(ran.err().unwrap_or_else(over)),
        }
    }
}

/// What a thread that became a poller runs for.
struct Blocked<'a, F: Future> {
    future: Pin<&'a mut F>,
    woken: Arc<Woken>,
    waker: Waker,
    output: Option<thread::Result<F::Output>>,
}

impl<F: Future> Main for Blocked<'_, F> {
    fn is_ready(&self) -> bool {
        self.woken.woken.load(Ordering::Relaxed)
    }

    fn go_on(&mut self) -> bool {
        // Acquire: what was done before it was woken is seen.
        if !self.woken.woken.swap(false, Ordering::Acquire) {
            return false;
        }
        let mut cx = Context::from_waker(&self.waker);
        match caught(|| self.future.as_mut().poll(&mut cx)) {
            Poll::Pending => false,
            Poll::Ready(output) => {
                self.output = Some(output);
                true
            }
        }
    }
}

/// Whether the future of `block_on` is to be polled.
struct Woken {
    handle: Arc<Handle>,
    woken: AtomicBool,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.handle.wake();
    }
}

impl Pollers {
    /// Starts a task on the next of them, as their [balance](crate::Balance) chooses: `make` makes its future there, which
    /// need not be `Send`. Works anywhere.
    ///
    /// If they have ended the handle says that the task was cancelled.
    pub fn spawn<M, F>(&self, make: M) -> JoinHandle<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output: Send> + 'static,
    {
        start(&self.choose(), make)
    }

    /// As [`spawn`](Pollers::spawn), on a certain one of them, counted as in [`stats_of_each`](Pollers::stats_of_each).
    ///
    /// # Panics
    /// If there are not as many.
    pub fn spawn_on<M, F>(&self, index: usize, make: M) -> JoinHandle<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output: Send> + 'static,
    {
        start(&self.handles()[index], make)
    }
}

/// Starts a task on a poller.
pub(crate) fn start<M, F>(poller: &Arc<Handle>, make: M) -> JoinHandle<F::Output>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output: Send> + 'static,
{
    let (start, handle) = task::spawn();
    // Dropped in this order, if the poller has ended.
    let arriving = (make, start);
    poller.call(move |poller| {
        let (make, start) = arriving;
        // Made within the task, since it may panic.
        start.on(poller.handle().executor(), async move { make().await });
    });
    handle
}
