//! What is known of a descriptor that somebody else reads and writes.

use std::fmt;
use std::io;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use crate::contain::contain;
use crate::poll::{Direction, Next, Ready};

/// What is known of a descriptor that is watched: shared by its poller and whoever uses it.
#[derive(Default)]
pub struct Readiness(Mutex<State>);

#[derive(Default)]
struct State {
    readable: Side,
    writable: Side,
    /// Whoever watches was asked to tell of room.
    asked_for_room: bool,
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

impl Readiness {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it may be ready. The answer is what [`clear`](Readiness::clear) takes; none if nobody watches any more. Of those who
    /// wait for one direction, the last is woken.
    pub fn poll(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<Option<u32>> {
        // A waker is a user's: it is neither cloned nor dropped under the lock.
        let waker = cx.waker().clone();
        let mut state = self.state();
        if state.over {
            return Poll::Ready(None);
        }
        let side = state.side(direction);
        if side.ready {
            return Poll::Ready(Some(side.told));
        }
        let before = side.waiting.replace(waker);
        drop(state);
        drop(before);
        Poll::Pending
    }

    /// Calls when it may be ready, and again as long as the call would have blocked or was interrupted. None if nobody watches any more.
    pub fn poll_with<R>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut call: impl FnMut() -> io::Result<R>,
    ) -> Poll<Option<io::Result<R>>> {
        self.poll_drain(cx, direction, || Ok((call()?, false)))
    }

    /// The same for a call that also says whether it has found the end of what was there, so that the next one would have blocked.
    pub fn poll_drain<R>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut call: impl FnMut() -> io::Result<(R, bool)>,
    ) -> Poll<Option<io::Result<R>>> {
        loop {
            let Some(told) = ready!(self.poll(cx, direction)) else { return Poll::Ready(None) };
            match call() {
                Ok((result, drained)) => {
                    if drained {
                        self.clear(direction, told);
                    }
                    return Poll::Ready(Some(Ok(result)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.clear(direction, told);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Whether nobody watches any more.
    pub fn is_over(&self) -> bool {
        self.state().over
    }

    /// Whether a call may be made at once.
    pub fn may_be_ready(&self, direction: Direction) -> bool {
        self.state().side(direction).ready
    }

    /// What was told so far, for a call that is made without waiting.
    pub fn told(&self, direction: Direction) -> u32 {
        self.state().side(direction).told
    }

    /// A call would have blocked, or the next one would, after it was told `told`: it is not ready, unless something was told since.
    pub fn clear(&self, direction: Direction, told: u32) {
        let mut state = self.state();
        let side = state.side(direction);
        if side.told == told {
            side.ready = false;
        }
    }

    /// Whether whoever watches is to be asked to tell of room: somebody waits for it, and nobody has asked yet.
    pub fn asks_for_room(&self) -> bool {
        let mut state = self.state();
        state.writable.waiting.is_some() && !mem::replace(&mut state.asked_for_room, true)
    }

    /// Stop: there may be room, and nobody had waited for it. Then it is asked for again.
    pub(crate) fn tell(&self, ready: Ready) -> Next {
        let mut state = self.state();
        let unwanted = ready.writable && state.writable.waiting.is_none();
        if unwanted {
            state.asked_for_room = false;
        }
        let wakers = [
            ready.readable.then(|| state.readable.tell()).flatten(),
            ready.writable.then(|| state.writable.tell()).flatten(),
        ];
        drop(state);
        wake(wakers);
        if unwanted { Next::Stop } else { Next::More }
    }

    pub(crate) fn end(&self) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const READABLE: Ready = Ready { readable: true, writable: false };
    const WRITABLE: Ready = Ready { readable: false, writable: true };

    /// What a poll with a call that says this comes to.
    fn drain(readiness: &Readiness, call: impl FnMut() -> io::Result<(u8, bool)>) -> Poll<u8> {
        let mut cx = Context::from_waker(Waker::noop());
        readiness
            .poll_drain(&mut cx, Direction::Read, call)
            .map(|result| result.expect("it is watched").expect("no error"))
    }

    #[test]
    fn what_is_empty_is_not_asked_again() {
        let readiness = Readiness::default();
        readiness.tell(READABLE);
        assert_eq!(drain(&readiness, || Ok((1, false))), Poll::Ready(1));
        assert_eq!(drain(&readiness, || Ok((2, true))), Poll::Ready(2));
        assert_eq!(drain(&readiness, || panic!("it was empty")), Poll::Pending);
        readiness.tell(READABLE);
        assert_eq!(drain(&readiness, || Ok((3, true))), Poll::Ready(3));
    }

    #[test]
    fn room_is_asked_for_once_until_nobody_wants_it() {
        let readiness = Readiness::default();
        let waits = || {
            let mut cx = Context::from_waker(Waker::noop());
            readiness.clear(Direction::Write, readiness.told(Direction::Write));
            readiness.poll(&mut cx, Direction::Write).is_pending()
        };
        assert!(!readiness.asks_for_room());
        assert!(waits() && readiness.asks_for_room() && !readiness.asks_for_room());
        assert_eq!(readiness.tell(WRITABLE), Next::More);
        assert!(waits() && !readiness.asks_for_room());
        assert_eq!(readiness.tell(WRITABLE), Next::More);
        assert_eq!(readiness.tell(READABLE), Next::More);
        assert_eq!(readiness.tell(WRITABLE), Next::Stop);
        assert!(waits() && readiness.asks_for_room());
    }

    #[test]
    fn what_comes_during_a_call_is_not_forgotten() {
        let readiness = Readiness::default();
        readiness.tell(READABLE);
        let call = || {
            readiness.tell(READABLE);
            Ok((1, true))
        };
        assert_eq!(drain(&readiness, call), Poll::Ready(1));
        assert_eq!(drain(&readiness, || Ok((2, true))), Poll::Ready(2));
    }
}
