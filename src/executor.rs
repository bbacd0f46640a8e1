//! The tasks of one poller: futures that need not be `Send`, run on the poller's own thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use async_task::Builder;
use duopoll_core::{Mailbox, shrink};
use pin_project_lite::pin_project;
use slab::Slab;

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
    tasks: Slab<Option<Task>>,
}

thread_local! {
    static LOCAL: RefCell<Local> =
        const { RefCell::new(Local { ready: VecDeque::new(), tasks: Slab::new() }) };
}

/// The way to an executor, from any thread.
#[derive(Debug)]
pub(crate) struct Executor {
    mailbox: Arc<Mailbox>,
    /// Tasks that were woken on other threads.
    woken: Mutex<Vec<Runnable>>,
}

/// How the tasks that were run have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ran {
    pub(crate) polls: u64,
    pub(crate) panics: u64,
}

/// Takes a task's handle out when its future is gone.
struct Finished(usize);

impl Drop for Finished {
    fn drop(&mut self) {
        let handle = LOCAL.with(|local| {
            let Local { tasks, .. } = &mut *local.borrow_mut();
            let handle = tasks.try_remove(self.0);
            shrink(tasks);
            handle
        });
        let handle = handle.flatten();
        if let Some(handle) = handle {
            // The task is on its last poll; a detached handle does not cancel it.
            handle.detach();
        }
    }
}

pin_project! {
    /// A future that is known to the executor. An async block around it would keep room for two of it.
    struct Tracked<F> {
        #[pin]
        future: F,
        _finished: Finished,
    }
}

impl<F: Future<Output = ()>> Future for Tracked<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().future.poll(cx)
    }
}

impl Executor {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Arc<Executor> {
        Arc::new(Executor { mailbox, woken: Mutex::new(Vec::new()) })
    }

    /// Starts a task on this thread, which must be the poller's.
    pub(crate) fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + 'static) {
        debug_assert!(self.mailbox.is_local());
        let runnable = LOCAL.with(|local| {
            let mut local = local.borrow_mut();
            let entry = local.tasks.vacant_entry();
            let finished = Finished(entry.key());
            let tracked = Tracked { future, _finished: finished };
            let builder = Builder::new().metadata(self.clone());
            let (runnable, task) = builder.spawn_local(|_| tracked, schedule);
            entry.insert(Some(task));
            runnable
        });
        runnable.schedule();
    }

    /// Takes in the tasks that were woken on other threads.
    pub(crate) fn collect(&self) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        LOCAL.with(|local| local.borrow_mut().ready.extend(woken.drain(..)));
    }

    /// Runs the tasks that are ready now, each once; those they wake run in the next call. Calls `after` behind
    /// each.
    pub(crate) fn run(&self, mut after: impl FnMut()) -> Ran {
        let mut ran = Ran::default();
        for _ in 0..LOCAL.with(|local| local.borrow().ready.len()) {
            let Some(runnable) = next_ready() else { break };
            ran.polls += 1;
            // A panic ends its own task: the future is dropped, and with it its connection is closed.
            let contained = duopoll_core::contain("a task", || {
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

    pub(crate) fn has_ready(&self) -> bool {
        LOCAL.with(|local| !local.borrow().ready.is_empty())
    }

    /// Cancels every task, on the poller's thread, before it ends.
    pub(crate) fn cancel_all(&self) {
        let tasks = LOCAL.with(|local| {
            let mut local = local.borrow_mut();
            local.tasks.iter_mut().filter_map(|(_, task)| task.take()).collect::<Vec<_>>()
        });
        drop(tasks);
        self.collect();
        while let Some(runnable) = next_ready() {
            // A cancelled task only drops its future, whose destructors may panic like any other code.
            duopoll_core::contain("a task", || {
                runnable.run();
            });
        }
    }
}

fn schedule(runnable: Runnable) {
    if runnable.metadata().mailbox.is_local() {
        LOCAL.with(|local| local.borrow_mut().ready.push_back(runnable));
    } else {
        let executor = runnable.metadata().clone();
        executor.woken.lock().unwrap_or_else(PoisonError::into_inner).push(runnable);
        executor.mailbox.wake();
    }
}

fn next_ready() -> Option<Runnable> {
    LOCAL.with(|local| local.borrow_mut().ready.pop_front())
}
