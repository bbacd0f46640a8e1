//! An array of places by index, that gives back what a burst has left behind.

use std::ops::{Deref, DerefMut};

/// An array of places by index, which is as long as the largest index in use asks for.
#[derive(Debug)]
pub(crate) struct Places<T> {
    places: Vec<T>,
    /// Whoever grows it pays for that: it shrinks behind half as many removals, or an index far behind the others that comes and goes
    /// would have it copied each time.
    removals_owed: usize,
}

impl<T> Places<T> {
    pub(crate) const fn new() -> Places<T> {
        Places { places: Vec::new(), removals_owed: 0 }
    }

    /// Has a place at this index. `empty` makes those that come to be.
    pub(crate) fn reach(&mut self, index: usize, empty: impl FnMut() -> T) {
        if index >= self.places.len() {
            self.places.resize_with(index + 1, empty);
            self.removals_owed = self.places.len() / 2;
        }
    }

    /// An entry was taken out, and so many are left: gives room back that a burst has left behind.
    pub(crate) fn removed(&mut self, entries: usize, is_empty: impl Fn(&T) -> bool) {
        if self.removals_owed > 0 {
            self.removals_owed -= 1;
        } else if has_become_few(entries, self.places.capacity()) {
            while self.places.last().is_some_and(&is_empty) {
                self.places.pop();
            }
            self.places.shrink_to_fit();
        }
    }
}

impl<T> Deref for Places<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.places
    }
}

impl<T> DerefMut for Places<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.places
    }
}

/// A table with fewer entries does not grow nor shrink to speak of.
const SHRINKS_FROM: usize = 1024;

/// Whether a table with room for so many is to shrink, when an entry was taken out: when the entries have become an eighth of that,
/// and each time that they are half as many again. Those at the end stand in the way.
pub(crate) fn has_become_few(entries: usize, room: usize) -> bool {
    let at_a_step = entries == 0 || entries.is_power_of_two();
    room >= SHRINKS_FROM && entries <= room / 8 && at_a_step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occupied(places: &Places<bool>) -> usize {
        places.iter().filter(|occupied| **occupied).count()
    }

    fn put(places: &mut Places<bool>, index: usize) {
        places.reach(index, || false);
        places[index] = true;
    }

    fn take(places: &mut Places<bool>, index: usize) {
        places[index] = false;
        places.removed(occupied(places), |occupied| !occupied);
    }

    #[test]
    fn what_a_burst_has_left_behind_is_given_back() {
        let mut places = Places::new();
        (0..10_000).for_each(|index| put(&mut places, index));
        (0..10_000).for_each(|index| take(&mut places, index));
        assert_eq!((places.len(), places.places.capacity()), (0, 0));
    }

    #[test]
    fn those_at_the_end_stand_in_the_way() {
        let mut places = Places::new();
        (0..10_000).for_each(|index| put(&mut places, index));
        (0..10_000).filter(|index| *index != 5_000).for_each(|index| take(&mut places, index));
        assert_eq!((places.len(), places[5_000]), (5_001, true));
    }

    #[test]
    fn an_index_far_behind_that_comes_and_goes_does_not_have_the_places_made_each_time() {
        let (mut places, mut made, far) = (Places::new(), 0, 100_000);
        for _ in 0..1_000 {
            places.reach(far, || {
                made += 1;
                false
            });
            places[far] = true;
            take(&mut places, far);
        }
        assert_eq!(made, far + 1);
    }
}
