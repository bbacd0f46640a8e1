//! The handle on a task: waits for what it gives, and ends it.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::thread;

use futures_channel::oneshot;
use pin_project_lite::pin_project;

use crate::contain::{caught, contain};
use crate::sync::{Mutex, lock};
use crate::task::executor::Executor;
use crate::token::Token;

/// A handle on a task. Awaiting it gives what the task gives; dropping it leaves the task alone.
///
/// It is `Send` if what the task gives is, whatever the task itself is.
///
/// # Cancellation
/// Awaiting `&mut handle` may be given up, and be begun again.
pub struct JoinHandle<T> {
    result: oneshot::Receiver<thread::Result<T>>,
    place: Arc<Place>,
}

/// Ends a task from elsewhere.
#[derive(Clone)]
pub struct AbortHandle(Arc<Place>);

/// Where a task is.
struct Place {
    state: Mutex<Whereabouts>,
    finished: AtomicBool,
}

enum Whereabouts {
    /// On its way to its poller.
    Starting,
    There(Arc<Executor>, Token),
    /// It is not to run any more.
    Aborted,
}

/// A task that is on its way to its poller. If it does not arrive, its handle is told.
#[derive(Debug)]
pub struct Start<T> {
    place: Arc<Place>,
    gone: Gone,
    // Last: whoever waits is told when the rest is gone.
    result: oneshot::Sender<thread::Result<T>>,
}

/// A task and its handle, before there is a future.
pub fn spawn<T>() -> (Start<T>, JoinHandle<T>) {
    let (sender, receiver) = oneshot::channel();
    let state = Mutex::new(Whereabouts::Starting);
    let place = Arc::new(Place { state, finished: AtomicBool::new(false) });
    let gone = Gone(place.clone());
    (Start { place: place.clone(), gone, result: sender }, JoinHandle { result: receiver, place })
}

impl<T: 'static> Start<T> {
    /// Starts it, on its poller's thread, unless it was aborted by now or the poller ends.
    pub fn on(self, executor: &Arc<Executor>, future: impl Future<Output = T> + 'static) {
        if self.place.is_aborted() {
            // In this order: whoever waits is told when the rest is gone.
            contain("a task", || drop(future));
            return;
        }
        let Start { place, gone, result } = self;
        let joined = Joined { future: Some(future), gone, result: Some(result) };
        let Some(token) = executor.spawn(joined) else { return };
        let mut state = lock(&place.state);
        if !matches!(*state, Whereabouts::Aborted) {
            *state = Whereabouts::There(executor.clone(), token);
            return;
        }
        drop(state);
        executor.abort(token);
    }

    /// Does it here, as something that is not a future, unless it was aborted by now.
    pub fn here(self, work: impl FnOnce() -> T) {
        if self.place.is_aborted() {
            contain("a blocking task", || drop(work));
            return;
        }
        let result = caught("a blocking task", work);
        drop(self.gone);
        if let Err(unwanted) = self.result.send(result) {
            contain("what a task gives", || drop(unwanted));
        }
    }
}

impl Place {
    fn is_aborted(&self) -> bool {
        matches!(*lock(&self.state), Whereabouts::Aborted)
    }

    fn abort(&self) {
        let before = std::mem::replace(&mut *lock(&self.state), Whereabouts::Aborted);
        if let Whereabouts::There(executor, task) = before {
            executor.abort(task);
        }
    }

    fn is_finished(&self) -> bool {
        // Acquire: what the task has done before is seen.
        self.finished.load(Ordering::Acquire)
    }
}

/// Dropped with the task's future.
#[derive(Debug)]
struct Gone(Arc<Place>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.finished.store(true, Ordering::Release);
    }
}

pin_project! {
    /// A future, and whom to give what it gives. A panic goes there, too.
    struct Joined<F: Future> {
        // None when it is over.
        #[pin]
        future: Option<F>,
        gone: Gone,
        // Last: whoever waits is told when the rest is gone.
        result: Option<oneshot::Sender<thread::Result<F::Output>>>,
    }
}

impl<F: Future> Future for Joined<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(future) = this.future.as_mut().as_pin_mut() else { return Poll::Ready(()) };
        let result = match caught("a task", || future.poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(value)) => Ok(value),
            Err(panic) => Err(panic),
        };
        // Whoever waits is told when it is gone.
        contain("a future that was dropped", || this.future.set(None));
        this.gone.0.finished.store(true, Ordering::Release);
        if let Some(sender) = this.result.take() {
            // If nobody waits for it, it is dropped here.
            let _ = sender.send(result);
        }
        Poll::Ready(())
    }
}

impl<T> JoinHandle<T> {
    /// Ends the task, soon and on its poller; a blocking one only before it has begun. Awaiting the handle gives what the task
    /// gave, if that was sooner.
    pub fn abort(&self) {
        self.place.abort();
    }

    /// A handle that can be given away, to end the task.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(self.place.clone())
    }

    /// Whether the task is over.
    pub fn is_finished(&self) -> bool {
        self.place.is_finished()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(Pin::new(&mut self.result).poll(cx));
        Poll::Ready(match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => Err(JoinError(Some(Mutex::new(panic)))),
            Err(oneshot::Canceled) => Err(JoinError(None)),
        })
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        // What a task has panicked with may panic, too.
        if let Ok(Some(result)) = self.result.try_recv() {
            contain("what a task gives", || drop(result));
        }
    }
}

impl AbortHandle {
    /// See [`JoinHandle::abort`].
    pub fn abort(&self) {
        self.0.abort();
    }

    /// See [`JoinHandle::is_finished`].
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

/// A task gave nothing: it has panicked, or was aborted, or its poller has ended. As an [`io::Error`] it is of the kind
/// [`Other`](io::ErrorKind::Other), so that `task.await?` will do in a handler.
pub struct JoinError(
    /// What a panic was about; only reached through a lock, so that the error is `Sync`.
    Option<Mutex<Box<dyn Any + Send>>>,
);

impl JoinError {
    /// Whether it has panicked.
    pub fn is_panic(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it was aborted, by its handle or with its poller.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_none()
    }

    /// What the panic was about, for [`resume_unwind`](std::panic::resume_unwind).
    ///
    /// # Errors
    /// Itself, if there was no panic.
    pub fn try_into_panic(mut self) -> Result<Box<dyn Any + Send>, JoinError> {
        match self.0.take() {
            #[cfg(not(any(loom, miri)))]
            Some(panic) => Ok(panic.into_inner()),
            #[cfg(any(loom, miri))]
            Some(panic) => {
                Ok(panic.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
            }
            None => Err(self),
        }
    }
}

impl Drop for JoinError {
    fn drop(&mut self) {
        // It may panic, too.
        if let Some(panic) = self.0.take() {
            contain("what a task has panicked with", || drop(panic));
        }
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(panic) = &self.0 else { return f.write_str("the task was cancelled") };
        let panic = lock(panic);
        let text = panic.downcast_ref::<&str>().copied();
        match text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)) {
            Some(text) => write!(f, "the task has panicked: {text}"),
            None => f.write_str("the task has panicked"),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinError({self})")
    }
}

impl Error for JoinError {}

impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> io::Error {
        io::Error::other(error)
    }
}
