//! Futures that run side by side in one task, in places that are used again.

use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use duopoll_core::contain;

/// Up to so many futures. What one needs to run is kept for the next.
pub(super) struct Calls<F> {
    places: Vec<Place<F>>,
    /// Places without a future.
    free: Vec<usize>,
    ready: Arc<Ready>,
    /// Those that are looked at in this poll.
    looking: Vec<usize>,
    max: usize,
}

/// Those that are left are dropped one by one: two that panic then would abort the process.
impl<F> Drop for Calls<F> {
    fn drop(&mut self) {
        for Place { future, .. } in &mut self.places {
            contain("a call", || future.set(None));
        }
    }
}

struct Place<F> {
    future: Pin<Box<Option<F>>>,
    woken: Arc<Woken>,
    waker: Waker,
}

/// The places whose futures can go on, and the task that is to look at them.
#[derive(Default)]
struct Ready {
    state: Mutex<(Vec<usize>, Option<Waker>)>,
}

struct Woken {
    place: usize,
    is_ready: AtomicBool,
    ready: Arc<Ready>,
}

impl<F: Future<Output = io::Result<()>>> Calls<F> {
    pub(super) fn new(max: usize) -> Calls<F> {
        let (places, free, looking) = (Vec::new(), Vec::new(), Vec::new());
        Calls { places, free, ready: Arc::default(), looking, max }
    }

    /// Waits for a place: until one of the futures is over.
    pub(super) fn poll_room(&mut self, _: &mut Context<'_>) -> Poll<()> {
        // It is asked again whenever one of them has gone on.
        match self.free.is_empty() && self.places.len() == self.max {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    /// Starts a future, where there is room, and has it go as far as it can.
    pub(super) fn start(&mut self, future: F) -> io::Result<()> {
        let place = self.free.pop().unwrap_or_else(|| self.add());
        self.places[place].future.set(Some(future));
        match self.poll_one(place) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Has all that can go on do so.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let waker = cx.waker().clone();
        let before = {
            let mut state = self.ready.state();
            mem::swap(&mut state.0, &mut self.looking);
            state.1.replace(waker)
        };
        drop(before);
        for at in 0..self.looking.len() {
            if let Poll::Ready(result) = self.poll_one(self.looking[at]) {
                result?;
            }
        }
        self.looking.clear();
        Ok(())
    }

    fn poll_one(&mut self, place: usize) -> Poll<io::Result<()>> {
        let Place { future, woken, waker } = &mut self.places[place];
        // Before it is polled: who wakes it meanwhile has it polled again.
        woken.is_ready.store(false, Ordering::Release);
        let Some(running) = future.as_mut().as_pin_mut() else { return Poll::Pending };
        let polled = running.poll(&mut Context::from_waker(waker));
        if polled.is_ready() {
            contain("a call", || future.set(None));
            self.free.push(place);
        }
        polled
    }

    fn add(&mut self) -> usize {
        let (place, ready) = (self.places.len(), self.ready.clone());
        let woken = Arc::new(Woken { place, is_ready: AtomicBool::new(false), ready });
        let waker = Waker::from(woken.clone());
        self.places.push(Place { future: Box::pin(None), woken, waker });
        place
    }
}

impl Ready {
    fn state(&self) -> MutexGuard<'_, (Vec<usize>, Option<Waker>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_ready.swap(true, Ordering::AcqRel) {
            return;
        }
        let waker = {
            let mut state = self.ready.state();
            state.0.push(self.place);
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
