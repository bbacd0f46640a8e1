//! Room for a number of calls, which others wait for in turn.

use std::collections::VecDeque;
use std::task::Waker;

/// So many have room, and who waits for it gets it in the order of coming.
pub(super) struct Room {
    taken: usize,
    max: usize,
    waiting: VecDeque<(u64, Option<Waker>)>,
    /// Who has been given room, and has not come for it yet.
    given: Vec<u64>,
    numbers: u64,
}

/// A place among those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Room {
    pub(super) fn new(max: usize) -> Room {
        Room { taken: 0, max, waiting: VecDeque::new(), given: Vec::new(), numbers: 0 }
    }

    /// How many have room, or have been given it.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Takes room, and gives the waker back. Without any it is kept, in place of the one that is given then.
    pub(super) fn enter(
        &mut self,
        place: &mut Option<Place>,
        waker: Waker,
    ) -> Result<Waker, Option<Waker>> {
        let Some(Place(number)) = *place else {
            if self.taken < self.max && self.waiting.is_empty() {
                self.taken += 1;
                return Ok(waker);
            }
            self.numbers += 1;
            *place = Some(Place(self.numbers));
            self.waiting.push_back((self.numbers, Some(waker)));
            return Err(None);
        };
        if let Some(at) = self.given.iter().position(|given| *given == number) {
            self.given.swap_remove(at);
            return Ok(waker);
        }
        match self.place(number) {
            Some(at) => Err(self.waiting[at].1.replace(waker)),
            None => Err(Some(waker)),
        }
    }

    /// One has no more use for his room. Gives whom to wake.
    pub(super) fn leave(&mut self) -> Option<Waker> {
        match self.waiting.pop_front() {
            Some((number, waker)) => {
                self.given.push(number);
                waker
            }
            None => {
                self.taken -= 1;
                None
            }
        }
    }

    /// One waits no more, or has been given room and does not want it. Gives his waker, and whom to wake.
    pub(super) fn give_up(&mut self, Place(number): Place) -> (Option<Waker>, Option<Waker>) {
        if let Some(at) = self.given.iter().position(|given| *given == number) {
            self.given.swap_remove(at);
            return (None, self.leave());
        }
        let left = self.place(number).and_then(|at| self.waiting.remove(at));
        (left.and_then(|(_, waker)| waker), None)
    }

    /// There are no calls any more: nobody has room, and all who wait look again.
    pub(super) fn end(&mut self) -> Vec<Waker> {
        self.taken = 0;
        self.given.clear();
        self.wake_all()
    }

    /// They are in the order of their numbers.
    fn place(&self, number: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&number, |(waits, _)| *waits).ok()
    }

    /// Has all who wait look again.
    pub(super) fn wake_all(&mut self) -> Vec<Waker> {
        self.waiting.iter_mut().filter_map(|(_, waker)| waker.take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(room: &mut Room, place: &mut Option<Place>) -> bool {
        room.enter(place, Waker::noop().clone()).is_ok()
    }

    #[test]
    fn who_waits_is_not_overtaken() {
        let mut room = Room::new(1);
        let (mut first, mut second, mut third) = (None, None, None);
        assert!(enter(&mut room, &mut first));
        assert!(!enter(&mut room, &mut second));
        assert!(room.leave().is_some());
        // Given to the second, who has not come for it yet.
        assert!(!enter(&mut room, &mut third));
        assert!(enter(&mut room, &mut second));
        assert_eq!(room.taken(), 1);
        assert!(room.leave().is_some());
        assert!(enter(&mut room, &mut third));
        assert!(room.leave().is_none());
        assert_eq!(room.taken(), 0);
    }

    #[test]
    fn who_gives_up_passes_it_on() {
        let mut room = Room::new(1);
        let (mut first, mut second, mut third, mut fourth) = (None, None, None, None);
        assert!(enter(&mut room, &mut first));
        for waits in [&mut second, &mut third, &mut fourth] {
            assert!(!enter(&mut room, waits));
        }
        let (unused, next) = room.give_up(third.unwrap());
        assert!(unused.is_some() && next.is_none());
        assert!(room.leave().is_some());
        // It was given to the second, who does not want it any more.
        let (unused, next) = room.give_up(second.unwrap());
        assert!(unused.is_none() && next.is_some());
        assert!(enter(&mut room, &mut fourth));
        assert!(room.leave().is_none());
        assert_eq!(room.taken(), 0);
    }
}
