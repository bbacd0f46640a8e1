//! What hyper runs on: tasks and timers of the pollers.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use ::hyper::rt::{Executor, Sleep as HyperSleep, Timer};

use crate::poller::Handle;
use crate::time::{Sleep, now, sleep, sleep_until};

/// Starts each future as a task on the poller of this thread; it need not be `Send`. A panic ends its own task, and with that one
/// stream of HTTP/2.
///
/// # Panics
/// Where there is no poller.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalExecutor;

impl<F: Future + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        let Some(poller) = Handle::current() else {
            panic!("streams are tasks of a poller's, and there is none on this thread");
        };
        // Without a handle: a panic is counted and logged like a handler's.
        poller.executor().spawn(future);
    }
}

/// The timers of the pollers; see [`time`](crate::time).
#[derive(Clone, Copy, Debug, Default)]
pub struct PollerTimer;

impl HyperSleep for Sleep {}

impl Timer for PollerTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(sleep(duration))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(sleep_until(deadline))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn HyperSleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Sleep>() {
            Some(sleep) => sleep.get_mut().reset(deadline),
            None => *sleep = self.sleep_until(deadline),
        }
    }

    fn now(&self) -> Instant {
        now()
    }
}
