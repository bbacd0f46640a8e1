//! Tasks that belong together, and to a server.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use duopoll_core::{Token, TokenSlab, contain};
use futures_channel::oneshot;
use pin_project_lite::pin_project;

use crate::poller::Handle;
use crate::pollers::Pollers;
use crate::task::{AbortHandle, JoinHandle, spawn_local};

/// Tasks that can be waited for and ended together. Given to a [server](crate::Builder::tasks), its graceful shutdown waits
/// for them, and ends them when the grace is over. Clones are the same group, which belongs to one server at most.
///
/// ```no_run
/// use duopoll::task::TaskGroup;
/// use duopoll::{Connection, EventLoop, Listener};
///
/// let tasks = TaskGroup::new();
/// let server = EventLoop::builder()
///     .tasks(&tasks)
///     .on_request(async move |connection: &mut Connection| {
///         let request = connection.until(b'\n', 1024).await?;
///         // The reply does not wait for it, the end of the server does.
///         tasks.spawn_local(async move { println!("{request:?}") });
///         connection.write(b"accepted\n")
///     })
///     .serve(Listener::bind("127.0.0.1:8080")?)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct TaskGroup(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// How to end each; none as long as it is about to be started.
    tasks: TokenSlab<Option<AbortHandle>>,
    /// Who comes is ended at once.
    aborted: bool,
    /// They had better come to their end.
    closing: bool,
    /// Who waits until they are asked to.
    until_closing: TokenSlab<Waker>,
    /// Who waits until there is none.
    waiting: Vec<oneshot::Sender<()>>,
    /// Pollers that look then whether a shutdown is over.
    ending: Vec<Arc<Handle>>,
}

/// A task's place in its group.
struct Member {
    group: TaskGroup,
    token: Token,
}

impl TaskGroup {
    /// A group without tasks.
    pub fn new() -> TaskGroup {
        TaskGroup::default()
    }

    /// As [`spawn_local`], for this group.
    ///
    /// # Panics
    /// If this is not the thread of a poller.
    pub fn spawn_local<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
    {
        let member = self.join();
        let token = member.token;
        let handle = spawn_local(Membership { future, _member: member });
        self.learn(token, handle.abort_handle());
        handle
    }

    /// As [`Pollers::spawn`], for this group.
    pub fn spawn<M, F>(&self, pollers: &Pollers, make: M) -> JoinHandle<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output: Send> + 'static,
    {
        let member = self.join();
        let token = member.token;
        let handle = pollers.spawn(move || async move {
            let _member = member;
            make().await
        });
        self.learn(token, handle.abort_handle());
        handle
    }

    /// As [`Pollers::spawn_on`], for this group.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn spawn_on<M, F>(&self, pollers: &Pollers, index: usize, make: M) -> JoinHandle<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output: Send> + 'static,
    {
        let member = self.join();
        let token = member.token;
        let handle = pollers.spawn_on(index, move || async move {
            let _member = member;
            make().await
        });
        self.learn(token, handle.abort_handle());
        handle
    }

    /// Tasks that have not ended.
    pub fn len(&self) -> usize {
        self.state().tasks.len()
    }

    /// Whether all have ended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until all have ended.
    pub async fn wait(&self) {
        let over = {
            let mut state = self.state();
            if state.tasks.is_empty() {
                return;
            }
            let (sender, over) = oneshot::channel();
            state.waiting.retain(|waiting| !waiting.is_canceled());
            state.waiting.push(sender);
            over
        };
        let _ = over.await;
    }

    /// Ends all of them, and those that come later at once. Returns how many there were, the first time.
    pub fn abort_all(&self) -> usize {
        let mut state = self.state();
        // Those that were there before are on their way out.
        let count = if mem::replace(&mut state.aborted, true) { 0 } else { state.tasks.len() };
        let handles: Vec<_> = state.tasks.iter().flatten().cloned().collect();
        drop(state);
        handles.into_iter().for_each(|handle| handle.abort());
        count
    }

    /// Asks all of them to come to an end: see [`closing`](TaskGroup::closing).
    pub fn close(&self) {
        let mut state = self.state();
        state.closing = true;
        let wakers = mem::take(&mut state.until_closing);
        drop(state);
        for waker in wakers.into_values() {
            contain("a waker", || waker.wake());
        }
    }

    /// Waits until they are asked to come to an end: by [`close`](TaskGroup::close), or because the server shuts down.
    /// For tasks that go on for ever otherwise.
    pub async fn closing(&self) {
        UntilClosing { group: self, token: None }.await;
    }

    /// Whether they are asked to come to an end.
    pub fn is_closing(&self) -> bool {
        self.state().closing
    }

    /// Has these pollers look again when the last of them has ended.
    pub(crate) fn tell_at_end(&self, pollers: Vec<Arc<Handle>>) {
        let mut state = self.state();
        state.ending.retain(|poller| !poller.has_ended());
        state.ending.extend(pollers);
    }

    fn join(&self) -> Member {
        let token = self.state().tasks.insert_with(|_| None);
        Member { group: self.clone(), token }
    }

    /// How a task is ended, now that it is started.
    fn learn(&self, token: Token, handle: AbortHandle) {
        let mut state = self.state();
        let aborted = state.aborted;
        if let Some(place) = state.tasks.get_mut(token) {
            *place = Some(handle.clone());
        }
        drop(state);
        if aborted {
            handle.abort();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait until tasks are asked to come to their end.
struct UntilClosing<'a> {
    group: &'a TaskGroup,
    token: Option<Token>,
}

impl Future for UntilClosing<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Cloned and dropped without the lock: it is a user's.
        let waker = cx.waker().clone();
        let mut state = self.group.state();
        if state.closing {
            return Poll::Ready(());
        }
        let known = self.token.and_then(|token| state.until_closing.get_mut(token));
        let before = match known {
            Some(known) => Some(mem::replace(known, waker)),
            None => {
                self.token = Some(state.until_closing.insert_with(|_| waker));
                None
            }
        };
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl Drop for UntilClosing<'_> {
    fn drop(&mut self) {
        let waker = self.token.and_then(|token| self.group.state().until_closing.remove(token));
        contain("a waker that was dropped", || drop(waker));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.group.state();
        let handle = state.tasks.remove(self.token);
        let is_last = state.tasks.is_empty();
        let waiting = if is_last { mem::take(&mut state.waiting) } else { Vec::new() };
        // Others may join, and end, before they look.
        let ending = if is_last { state.ending.clone() } else { Vec::new() };
        drop(state);
        drop(handle);
        ending.iter().for_each(|poller| poller.wake());
        for waiting in waiting {
            // A waker of somebody else's.
            contain("a waker", || {
                let _ = waiting.send(());
            });
        }
    }
}

pin_project! {
    /// A future, and its place in a group.
    struct Membership<F> {
        #[pin]
        future: F,
        _member: Member,
    }
}

impl<F: Future> Future for Membership<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

impl fmt::Debug for TaskGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup").field("tasks", &self.len()).finish_non_exhaustive()
    }
}
