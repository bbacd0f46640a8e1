//! The tasks of one poller: futures that need not be `Send`, run on the poller's own thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::mem::{self, ManuallyDrop};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_task::Builder;

use crate::contain::{contain, contain_task};
use crate::mailbox::Mailbox;
use crate::sync::{Mutex, lock};
use crate::token::{Token, TokenSlab};

/// A task that can go on, with the executor that it goes on in. Kept beside the task rather than by the function that
/// schedules it: one that holds something costs another atomic a wake-up.
type Runnable = async_task::Runnable<Arc<Executor>>;
type Task = async_task::Task<(), Arc<Executor>>;

/// Room for so many tasks that can go on is kept.
const READY_KEPT: usize = 1024;

/// The tasks of this thread's poller.
struct Local {
    /// Those that can go on.
    ready: VecDeque<Runnable>,
    /// All of them; dropping a handle cancels its task.
    tasks: TokenSlab<Option<Task>>,
    /// A poller runs, and takes them.
    open: bool,
}

impl Local {
    /// A place for a task, if the poller runs.
    fn reserve(&mut self) -> Option<Token> {
        self.open.then(|| self.tasks.insert_with(|_| None))
    }

    fn keep(&mut self, token: Token, task: Task) {
        if let Some(place) = self.tasks.get_mut(token) {
            *place = Some(task);
        }
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = const {
        RefCell::new(Local { ready: VecDeque::new(), tasks: TokenSlab::new(), open: false })
    };
}

/// The way to the tasks of a poller, from any thread.
#[repr(align(128))]
pub struct Executor {
    mailbox: Arc<Mailbox>,
    others: Mutex<FromOthers>,
}

/// What other threads have left.
#[derive(Default)]
struct FromOthers {
    /// Tasks that were woken.
    woken: Vec<Runnable>,
    /// Tasks that are to end.
    aborted: Vec<Token>,
}

/// How the tasks that were run have ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ran {
    /// So often was one polled.
    pub polls: u64,
    /// So many have panicked.
    pub panics: u64,
}

/// Takes a task's handle out when its future is gone.
struct Finished(Token);

impl Drop for Finished {
    fn drop(&mut self) {
        let handle = LOCAL.with(|local| local.borrow_mut().tasks.remove(self.0));
        if let Some(handle) = handle.flatten() {
            // The task is on its last poll; a detached handle does not cancel it.
            handle.detach();
        }
    }
}

/// A future that is known to the executor. An async block around it would keep room for two of it.
struct Tracked<F> {
    /// Pinned with the whole, and dropped with it.
    future: ManuallyDrop<F>,
    _finished: Finished,
}

impl<F: Future> Future for Tracked<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the future is pinned with the whole: nothing moves it out, and it is dropped where it lies.
        let future = unsafe { self.map_unchecked_mut(|tracked| &mut *tracked.future) };
        future.poll(cx).map(drop)
    }
}

impl<F> Drop for Tracked<F> {
    fn drop(&mut self) {
        // What is dropped is a user's, and may panic. Where a task is cancelled that would abort the process.
        contain("a future that was dropped", || {
            // SAFETY: once, and last.
            unsafe { ManuallyDrop::drop(&mut self.future) };
        });
    }
}

impl Executor {
    /// An executor for the poller of that mailbox.
    pub fn new(mailbox: Arc<Mailbox>) -> Arc<Executor> {
        Arc::new(Executor { mailbox, others: Mutex::default() })
    }

    /// Takes tasks from now on, on this thread, until [`cancel_all`](Executor::cancel_all).
    pub fn open(&self) {
        LOCAL.with(|local| local.borrow_mut().open = true);
    }

    /// Starts a task on this thread, which must be the poller's. None if the poller does not run: the future is dropped then.
    ///
    /// A future may be large, so it is moved as seldom as can be.
    #[inline]
    pub fn spawn(self: &Arc<Self>, future: impl Future + 'static) -> Option<Token> {
        debug_assert!(self.mailbox.is_local());
        let Some(token) = LOCAL.with(|local| local.borrow_mut().reserve()) else {
            contain("a task", || drop(future));
            return None;
        };
        let builder = Builder::new().metadata(self.clone());
        let track = |_: &Arc<Executor>| Tracked {
            future: ManuallyDrop::new(future),
            _finished: Finished(token),
        };
        let (runnable, task) = builder.spawn_local(track, schedule);
        LOCAL.with(|local| local.borrow_mut().keep(token, task));
        runnable.schedule();
        Some(token)
    }

    /// Ends a task, from any thread: its future is dropped on its poller's, soon. Harmless if it has ended.
    pub fn abort(&self, task: Token) {
        if self.mailbox.is_local() {
            let task = LOCAL.with(|local| local.borrow_mut().tasks.get_mut(task)?.take());
            // Cancels it.
            drop(task);
        } else {
            lock(&self.others).aborted.push(task);
            self.mailbox.wake();
        }
    }

    /// Whether this is the thread of its poller.
    pub fn is_local(&self) -> bool {
        self.mailbox.is_local()
    }

    /// Takes in what other threads have left.
    pub fn collect(&self) {
        let aborted = {
            let mut others = lock(&self.others);
            LOCAL.with(|local| local.borrow_mut().ready.extend(others.woken.drain(..)));
            mem::take(&mut others.aborted)
        };
        for task in aborted {
            self.abort(task);
        }
    }

    /// Runs the tasks that are ready now, each once; those they wake run in the next call. Calls `after` behind
    /// each.
    #[inline]
    pub fn run(&self, mut after: impl FnMut()) -> Ran {
        let mut ran = Ran::default();
        for _ in 0..LOCAL.with(|local| local.borrow().ready.len()) {
            let Some(runnable) = next_ready() else { break };
            ran.polls += 1;
            // A panic ends its own task: the future is dropped, and with it its connection is closed.
            let contained = contain_task(|| {
                runnable.run();
            });
            ran.panics += u64::from(!contained);
            after();
        }
        LOCAL.with(|local| {
            let Local { ready, .. } = &mut *local.borrow_mut();
            // A burst has left it behind.
            if ready.capacity() > READY_KEPT && (ran.polls as usize) < ready.capacity() / 8 {
                ready.shrink_to(READY_KEPT);
            }
        });
        ran
    }

    /// Whether a task can go on.
    #[inline]
    pub fn has_ready(&self) -> bool {
        LOCAL.with(|local| !local.borrow().ready.is_empty())
    }

    /// Tasks that there are.
    pub fn tasks(&self) -> usize {
        LOCAL.with(|local| local.borrow().tasks.len())
    }

    /// Cancels every task, on the poller's thread, before it ends. From now on none is started.
    pub fn cancel_all(&self) {
        let tasks = LOCAL.with(|local| {
            let mut local = local.borrow_mut();
            local.open = false;
            let tokens: Vec<_> = local.tasks.tokens().collect();
            let take = |token| local.tasks.get_mut(token).and_then(Option::take);
            tokens.into_iter().filter_map(take).collect::<Vec<_>>()
        });
        drop(tasks);
        loop {
            self.collect();
            while let Some(runnable) = next_ready() {
                // A cancelled task only drops its future, whose destructors may panic like any other code.
                contain("a task", || {
                    runnable.run();
                });
            }
            if self.tasks() == 0 {
                break;
            }
            // Another thread has just woken it, and is about to leave it here.
            std::thread::yield_now();
        }
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("mailbox", &self.mailbox).finish_non_exhaustive()
    }
}

fn schedule(runnable: Runnable) {
    if runnable.metadata().mailbox.is_local() {
        LOCAL.with(|local| local.borrow_mut().ready.push_back(runnable));
    } else {
        let executor = runnable.metadata().clone();
        lock(&executor.others).woken.push(runnable);
        executor.mailbox.wake();
    }
}

#[inline]
fn next_ready() -> Option<Runnable> {
    LOCAL.with(|local| local.borrow_mut().ready.pop_front())
}
