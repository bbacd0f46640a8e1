//! Timers of the poller that runs on this thread, for whoever wants to be woken at a time.

use std::cell::RefCell;
use std::mem;
use std::task::Waker;

use crate::connection::wake;
use crate::contain::contain;
use crate::timer::{Tick, Wheel};
use crate::token::{Token, TokenSlab};

/// Who is to be woken, and when.
#[derive(Debug)]
struct Timers {
    wheel: Wheel,
    wakers: TokenSlab<Waker>,
}

thread_local! {
    /// None before the first.
    static TIMERS: RefCell<Option<Box<Timers>>> = const { RefCell::new(None) };
}

/// Has `waker` called when the time has come: sets a timer, or changes the one that there is. O(1), and without an allocation
/// once there have been as many. Only on the thread of the poller; the timer is gone when it has fired.
pub fn set(timer: Option<Token>, deadline: Tick, now: Tick, waker: &Waker) -> Token {
    // Made and dropped while nothing is borrowed: it is a user's.
    let waker = waker.clone();
    let (token, _before) = TIMERS.with_borrow_mut(|timers| {
        let Timers { wheel, wakers } = &mut **timers.get_or_insert_with(|| {
            Box::new(Timers { wheel: Wheel::new(now), wakers: TokenSlab::new() })
        });
        let known = timer.and_then(|timer| Some((timer, wakers.get_mut(timer)?)));
        let (token, before) = match known {
            Some((timer, known)) => (timer, Some(mem::replace(known, waker))),
            None => (wakers.insert_with(|_| waker), None),
        };
        if wheel.deadline(token.index()) != Some(deadline) {
            wheel.set(token.index(), deadline);
        }
        (token, before)
    });
    token
}

/// Has another waker called, if it is another. False if the timer has fired.
#[inline]
pub fn wake_by(timer: Token, waker: &Waker) -> bool {
    let same = TIMERS.with_borrow_mut(|timers| {
        let known = timers.as_mut().and_then(|timers| timers.wakers.get_mut(timer));
        known.map(|known| known.will_wake(waker))
    });
    match same {
        Some(true) => true,
        Some(false) => exchange(timer, waker),
        None => false,
    }
}

fn exchange(timer: Token, waker: &Waker) -> bool {
    // Made and dropped while nothing is borrowed: it is a user's.
    let waker = waker.clone();
    let before = TIMERS.with_borrow_mut(|timers| {
        let known = timers.as_mut().and_then(|timers| timers.wakers.get_mut(timer));
        match known {
            Some(known) => Ok(mem::replace(known, waker)),
            None => Err(waker),
        }
    });
    before.is_ok()
}

/// Sets a timer to another time. False if it has fired.
pub fn reset(timer: Token, deadline: Tick) -> bool {
    TIMERS.with_borrow_mut(|timers| {
        let Some(timers) = timers else { return false };
        let is_set = timers.wakers.get(timer).is_some();
        if is_set {
            timers.wheel.set(timer.index(), deadline);
        }
        is_set
    })
}

/// Takes a timer back. Harmless if it has fired.
pub fn forget(timer: Token) {
    // Where the thread is coming to its end there are none any more.
    let waker = TIMERS.try_with(|timers| {
        let mut timers = timers.borrow_mut();
        let timers = timers.as_mut()?;
        let waker = timers.wakers.remove(timer)?;
        timers.wheel.clear(timer.index());
        Some(waker)
    });
    contain("a waker that was dropped", || drop(waker));
}

/// Wakes those whose time has come.
pub(crate) fn fire(now: Tick) {
    loop {
        let due = TIMERS.with_borrow_mut(|timers| {
            let Timers { wheel, wakers } = &mut **timers.as_mut()?;
            let index = wheel.advance(now)?;
            Some(wakers.token_at(index).and_then(|token| wakers.remove(token)))
        });
        let Some(waker) = due else { break };
        wake(waker);
    }
}

/// When the next is due.
pub(crate) fn next_expiry() -> Option<Tick> {
    TIMERS.with_borrow(|timers| timers.as_ref()?.wheel.next_expiry())
}

/// How many are set.
pub(crate) fn count() -> usize {
    TIMERS.with_borrow(|timers| timers.as_ref().map_or(0, |timers| timers.wakers.len()))
}

/// The poller ends: wakes everybody, who is to look for another.
pub fn clear() {
    let timers = TIMERS.try_with(|timers| timers.borrow_mut().take()).ok().flatten();
    for waker in timers.into_iter().flat_map(|timers| timers.wakers.into_values()) {
        wake(Some(waker));
    }
}
