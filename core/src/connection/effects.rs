//! What follows from a transition, for whoever made it to do when the lock is free again.

use std::fmt;
use std::mem;
use std::task::Waker;

use crate::buffer::Chain;
use crate::contain::contain;

/// What a user wants to be called when something happens to the connection.
pub(super) type Callback = Box<dyn FnOnce() + Send>;
/// Few connections have any, and those without spend a pointer on it.
pub(super) type Callbacks = Option<Box<CallbackList>>;

/// When a callback is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// At the end.
    Closed,
    /// When its server begins to shut down, and at the end of both directions: a peer that has only sent its FIN may wait for a reply.
    Draining,
    /// When its poller and its engine hold nothing of it any more.
    Released,
}

impl When {
    /// Whether it comes behind the end of both directions, or only of the peer's.
    pub(super) fn outlasts_the_end(self, peers: bool) -> bool {
        match self {
            When::Closed => false,
            When::Draining => peers,
            When::Released => true,
        }
    }
}

/// Callbacks in the order in which they were set, each with a number of its own.
#[derive(Default)]
pub(super) struct CallbackList {
    numbers: u64,
    all: Vec<(u64, When, Callback)>,
}

impl CallbackList {
    pub(super) fn add(&mut self, when: When, callback: Callback) -> u64 {
        self.numbers += 1;
        self.all.push((self.numbers, when, callback));
        self.numbers
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Callback> {
        let at = self.all.iter().position(|(other, ..)| *other == number)?;
        Some(self.all.remove(at).2)
    }

    /// Whether there are some that wait for more than the end, or for more than the peer's.
    pub(super) fn outlast_the_end(&self, peers: bool) -> bool {
        self.all.iter().any(|(_, when, _)| when.outlasts_the_end(peers))
    }

    /// Those that wait for the end, or the peer's, or for less.
    pub(super) fn take_ended(&mut self, peers: bool) -> Callbacks {
        let waits = |(_, when, _): &(u64, When, Callback)| when.outlasts_the_end(peers);
        let (waiting, ended) = mem::take(&mut self.all).into_iter().partition::<Vec<_>, _>(waits);
        self.all = waiting;
        (!ended.is_empty()).then(|| Box::new(CallbackList { numbers: 0, all: ended }))
    }

    pub(super) fn append(&mut self, mut others: CallbackList) {
        self.all.append(&mut others.all);
    }

    /// Those that do not wait for the end.
    pub(super) fn take_draining(&mut self) -> Callbacks {
        let is_draining = |(_, when, _): &(u64, When, Callback)| *when == When::Draining;
        let (draining, others) = mem::take(&mut self.all).into_iter().partition(is_draining);
        self.all = others;
        Some(Box::new(CallbackList { numbers: 0, all: draining }))
    }
}

/// Whom to wake, what to call and what to drop. All that belongs to a user is in here: it may call back,
/// block or panic, and so it is never touched under the lock.
#[derive(Default)]
#[must_use]
pub(crate) struct Effects {
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    pub(super) callbacks: Callbacks,
    /// Bytes that nobody needs any more, with their owners.
    pub(super) dropped: Chain,
    /// Wakers of waits that have ended by themselves.
    pub(super) unused: [Option<Waker>; 2],
}

impl Effects {
    /// Whether the reader is woken, and the writer.
    pub(crate) fn wake(&self) -> (bool, bool) {
        (self.reader.is_some(), self.writer.is_some())
    }

    pub(crate) fn perform(self) {
        let Effects { reader, writer, callbacks, dropped, unused } = self;
        wake(reader);
        wake(writer);
        // The last first, as destructors run.
        let callbacks = callbacks.into_iter().flat_map(|callbacks| callbacks.all.into_iter().rev());
        for (.., callback) in callbacks {
            contain("a callback of a connection", callback);
        }
        for waker in unused.into_iter().flatten() {
            contain("a waker that was dropped", || drop(waker));
        }
        drop(dropped);
    }
}

/// Calls a waker, if there is one. It is a user's, and must not end whoever calls it: a panic of its is left to the panic
/// hook.
#[inline]
pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        contain("a waker", || waker.wake());
    }
}

impl fmt::Debug for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Effects")
            .field("reader", &self.reader.is_some())
            .field("writer", &self.writer.is_some())
            .field("callbacks", &self.callbacks.as_ref().map_or(0, |callbacks| callbacks.all.len()))
            .field("dropped_bytes", &self.dropped.len())
            .finish()
    }
}

/// The waker of a poll, for a wait that may have to keep it. A clone of it is made before the lock is taken, since cloning is
/// the user's code.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    waker: &'a Waker,
    clone: Option<Waker>,
}

impl<'a> Offer<'a> {
    /// `likely`: it will be kept.
    #[inline]
    pub(super) fn new(waker: &'a Waker, likely: bool) -> Offer<'a> {
        Offer { waker, clone: likely.then(|| waker.clone()) }
    }

    /// Makes the clone that was missing.
    #[cold]
    pub(super) fn renew(&mut self) {
        self.clone = Some(self.waker.clone());
    }

    /// Has `kept` be this waker. False if there is no clone to keep: then once more, with one.
    #[inline]
    pub(super) fn keep_in(&mut self, kept: &mut Option<Waker>) -> bool {
        if kept.as_ref().is_some_and(|kept| kept.will_wake(self.waker)) {
            return true;
        }
        if self.clone.is_none() {
            return false;
        }
        // What was kept before is dropped with the offer, and not here.
        mem::swap(kept, &mut self.clone);
        true
    }
}
