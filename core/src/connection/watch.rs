//! Waiting for what happens to a connection: its end, or that its server begins to shut down.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::effects::When;
use super::shared::Shared;
use crate::sync::{Mutex, lock};

/// Waits until a connection ends, or is to end: see [`Control::closed`](super::Control::closed) and
/// [`Control::draining`](super::Control::draining). Does not keep the connection open.
///
/// # Cancellation
/// Dropping it leaves nothing behind.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Watch {
    shared: Arc<Shared>,
    when: When,
    /// None before the first poll.
    waiting: Option<(u64, Arc<Waiter>)>,
}

#[derive(Default)]
struct Waiter(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    waker: Option<Waker>,
    told: bool,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, when: When) -> Watch {
        Watch { shared, when, waiting: None }
    }
}

impl Future for Watch {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Cloned before the lock, and dropped behind it: it is a user's.
        let waker = cx.waker().clone();
        if let Some((_, waiter)) = &self.waiting {
            let mut waiting = lock(&waiter.0);
            if waiting.told {
                return Poll::Ready(());
            }
            let before = waiting.waker.replace(waker);
            drop(waiting);
            drop(before);
            return Poll::Pending;
        }
        let waiter = Arc::new(Waiter::default());
        lock(&waiter.0).waker = Some(waker);
        let told = waiter.clone();
        let Some(callback) = self.shared.call_when(self.when, Box::new(move || told.tell())) else {
            return Poll::Ready(());
        };
        self.waiting = Some((callback, waiter));
        Poll::Pending
    }
}

impl Waiter {
    fn tell(&self) {
        let waker = {
            let mut waiting = lock(&self.0);
            waiting.told = true;
            waiting.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((callback, _)) = self.waiting.take() {
            self.shared.remove_callback(callback);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("connection", &self.shared).field("when", &self.when).finish()
    }
}
