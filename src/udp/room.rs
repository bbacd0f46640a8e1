//! Who waits for room to send: readiness knows of one only, and a socket may have many senders.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use duopoll_core::contain;
use slab::Slab;

/// Those who wait for room in a socket.
#[derive(Debug, Default)]
pub(crate) struct Room(Mutex<Seats>);

#[derive(Debug, Default)]
struct Seats {
    /// Who waits, and since when.
    all: Slab<Option<(u64, Waker)>>,
    next: u64,
}

/// The place of somebody who may wait. Who gives it up does not wait any more.
#[derive(Debug)]
pub(crate) struct Seat {
    room: Arc<Room>,
    number: usize,
}

impl Room {
    pub(crate) fn seat(self: &Arc<Room>) -> Seat {
        let number = self.seats().all.insert(None);
        Seat { room: self.clone(), number }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Waits here. The waker that the poller is to call wakes all who wait, and first who has waited longest.
    pub(crate) fn wait(&self, cx: &Context<'_>) -> Waker {
        // A waker is a user's: it is neither cloned nor dropped under the lock.
        let waker = cx.waker().clone();
        let mut seats = self.room.seats();
        let Seats { all, next } = &mut *seats;
        let seat = &mut all[self.number];
        let since = seat.as_ref().map_or(*next, |(since, _)| *since);
        *next += 1;
        let before = seat.replace((since, waker));
        drop(seats);
        contain("a waker", || drop(before));
        self.room.clone().into()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let waiting = self.room.seats().all.remove(self.number);
        contain("a waker", || drop(waiting));
    }
}

impl Wake for Room {
    fn wake(self: Arc<Room>) {
        let mut waiting: Vec<_> =
            self.seats().all.iter_mut().filter_map(|(_, seat)| seat.take()).collect();
        waiting.sort_unstable_by_key(|(since, _)| *since);
        for (_, waker) in waiting {
            contain("a waker", || waker.wake());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says in which order they were woken.
    struct Somebody(u32, Arc<Mutex<Vec<u32>>>);

    impl Wake for Somebody {
        fn wake(self: Arc<Self>) {
            self.1.lock().expect("no panic").push(self.0);
        }
    }

    #[test]
    fn who_has_waited_longest_is_first_and_who_is_gone_is_not_woken() {
        let (room, woken) = (Arc::new(Room::default()), Arc::default());
        let seats: [Seat; 4] = [(); 4].map(|()| room.seat());
        let wait = |number: usize| {
            let waker = Waker::from(Arc::new(Somebody(number as u32, Arc::clone(&woken))));
            seats[number].wait(&Context::from_waker(&waker))
        };
        let all = [2, 0, 3, 2].map(wait);
        all[0].wake_by_ref();
        assert_eq!(*woken.lock().expect("no panic"), [2, 0, 3]);
        all[0].wake_by_ref();
        assert_eq!(woken.lock().expect("no panic").len(), 3);
        let all = [1, 3].map(wait);
        drop(seats);
        all[0].wake_by_ref();
        assert_eq!(woken.lock().expect("no panic").len(), 3);
        assert!(room.seats().all.is_empty());
    }
}
