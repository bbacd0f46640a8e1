//! Descriptors that somebody else reads and writes, and that are watched for him.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll as TaskPoll, Waker};

use super::Driver;
use super::slot::Slot;
use crate::contain::contain;
use crate::poll::{Deregister, Direction, Kind, Poll, Ready};
use crate::token::Token;

/// What is known of a descriptor that is watched: shared by its poller and whoever uses it.
#[derive(Default)]
pub struct Readiness(Mutex<State>);

#[derive(Default)]
struct State {
    readable: Side,
    writable: Side,
    /// Nobody watches any more.
    over: bool,
}

#[derive(Default)]
struct Side {
    ready: bool,
    /// Counts what was told, so that older knowledge does not undo it.
    told: u32,
    waiting: Option<Waker>,
}

/// A descriptor of this poller, and what is known of it.
pub(super) struct Watched {
    /// Stays open until it is released.
    _fd: OwnedFd,
    readiness: Arc<Readiness>,
    deregistered: bool,
}

impl Readiness {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it may be ready. The answer is what [`clear`](Readiness::clear) takes; none if nobody watches any more. Of those who
    /// wait for one direction, the last is woken.
    pub fn poll(&self, cx: &mut Context<'_>, direction: Direction) -> TaskPoll<Option<u32>> {
        let mut state = self.state();
        if state.over {
            return TaskPoll::Ready(None);
        }
        let side = state.side(direction);
        if side.ready {
            return TaskPoll::Ready(Some(side.told));
        }
        match &mut side.waiting {
            Some(waiting) => waiting.clone_from(cx.waker()),
            waiting => *waiting = Some(cx.waker().clone()),
        }
        TaskPoll::Pending
    }

    /// A call would have blocked, after it was told `told`: it is not ready, unless something was told since.
    pub fn clear(&self, direction: Direction, told: u32) {
        let mut state = self.state();
        let side = state.side(direction);
        if side.told == told {
            side.ready = false;
        }
    }

    fn tell(&self, ready: Ready) {
        let mut state = self.state();
        let wakers = [
            ready.readable.then(|| state.readable.tell()).flatten(),
            ready.writable.then(|| state.writable.tell()).flatten(),
        ];
        drop(state);
        wake(wakers);
    }

    fn end(&self) {
        let mut state = self.state();
        state.over = true;
        let wakers = [state.readable.waiting.take(), state.writable.waiting.take()];
        drop(state);
        wake(wakers);
    }
}

impl State {
    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Read => &mut self.readable,
            Direction::Write => &mut self.writable,
        }
    }
}

impl Side {
    fn tell(&mut self) -> Option<Waker> {
        self.ready = true;
        self.told = self.told.wrapping_add(1);
        self.waiting.take()
    }
}

fn wake(wakers: [Option<Waker>; 2]) {
    for waker in wakers.into_iter().flatten() {
        contain("a waker", || waker.wake());
    }
}

impl Driver {
    /// Watches a descriptor, until it is [unwatched](Driver::unwatch) or the poller ends.
    ///
    /// # Errors
    /// What the engine says; the descriptor is closed then.
    pub fn watch<P: Poll>(
        &mut self,
        engine: &mut P,
        fd: OwnedFd,
    ) -> io::Result<(Token, Arc<Readiness>)> {
        let (number, readiness) = (fd.as_raw_fd(), Arc::new(Readiness::default()));
        let watched = Watched { _fd: fd, readiness: readiness.clone(), deregistered: false };
        let token = self.slots.insert_with(|_| Slot::Watched(watched));
        // SAFETY: the slot has the descriptor, and is freed when the engine releases it; its token is nobody else's.
        if let Err(error) = unsafe { engine.register(token, number, Kind::Watched, self) } {
            self.slots.remove(token);
            return Err(error);
        }
        Ok((token, readiness))
    }

    /// Watches it no more.
    pub fn unwatch<P: Poll>(&mut self, engine: &mut P, token: Token) {
        if let Some(Slot::Watched(watched)) = self.slots.get_mut(token) {
            if !mem::replace(&mut watched.deregistered, true) {
                watched.readiness.end();
                engine.deregister(token, Deregister::Leave, self);
            }
        }
    }

    pub(super) fn tell_ready(&mut self, token: Token, ready: Ready) {
        if let Some(Slot::Watched(watched)) = self.slots.get_mut(token) {
            watched.readiness.tell(ready);
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Readiness")
            .field("readable", &state.readable.ready)
            .field("writable", &state.writable.ready)
            .field("over", &state.over)
            .finish()
    }
}
