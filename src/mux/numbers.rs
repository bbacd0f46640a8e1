//! Calls by their numbers.

use std::mem;

/// Places at first.
const PLACES: usize = 16;

/// What waits, under numbers that follow each other. One is used again after all others, and never while it waits.
pub(super) struct Numbers<T> {
    /// A power of two, each for the numbers that end like its index.
    places: Vec<Option<(u64, T)>>,
    taken: usize,
    next: u64,
    /// The largest.
    last: u64,
}

impl<T> Numbers<T> {
    /// Numbers of so many bits.
    pub(super) fn new(bits: u32) -> Numbers<T> {
        let last = u64::MAX >> (64 - bits.clamp(1, 64));
        Numbers { places: Vec::new(), taken: 0, next: 0, last }
    }

    pub(super) fn len(&self) -> usize {
        self.taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Gives a number to something; none if all are taken.
    pub(super) fn insert(&mut self, value: T) -> Option<u64> {
        if self.taken as u64 > self.last {
            return None;
        }
        // At most half of the places are taken, unless there are no more numbers than that: then a free one is near.
        if self.taken * 2 >= self.places.len() && self.places.len() as u64 <= self.last {
            self.grow();
        }
        loop {
            let number = self.next;
            self.next = if number == self.last { 0 } else { number + 1 };
            let index = self.index(number);
            if self.places[index].is_none() {
                self.places[index] = Some((number, value));
                self.taken += 1;
                return Some(number);
            }
        }
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let index = self.index(number);
        match self.places.get_mut(index)? {
            Some((known, value)) if *known == number => Some(value),
            _ => None,
        }
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        self.get_mut(number)?;
        let index = self.index(number);
        let (_, value) = self.places[index].take()?;
        self.taken -= 1;
        Some(value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().flatten().map(|(_, value)| value)
    }

    fn index(&self, number: u64) -> usize {
        number as usize & self.places.len().wrapping_sub(1)
    }

    /// What shares no place now will share none among twice as many.
    fn grow(&mut self) {
        let count = (self.places.len() * 2).max(PLACES);
        let mut places = Vec::with_capacity(count);
        places.resize_with(count, || None);
        for entry in mem::replace(&mut self.places, places).into_iter().flatten() {
            let index = self.index(entry.0);
            self.places[index] = Some(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Against a map, with numbers of all widths.
    #[test]
    fn a_number_belongs_to_one_at_a_time() {
        for bits in [1, 2, 3, 5, 8, 24, 64] {
            let (mut numbers, mut model) = (Numbers::new(bits), HashMap::new());
            let mut random = 1_u64;
            for step in 0..20_000_u64 {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(step | 1);
                // Sometimes more come than go, and sometimes fewer.
                let comes = (random >> 33) % 100 < if step / 500 % 2 == 0 { 60 } else { 40 };
                if comes {
                    let full = bits < 16 && model.len() == 1 << bits;
                    let number = numbers.insert(step);
                    assert_eq!(number.is_none(), full);
                    if let Some(number) = number {
                        assert!(bits == 64 || number < 1 << bits);
                        assert_eq!(model.insert(number, step), None);
                    }
                } else if let Some(&number) = model.keys().next() {
                    assert_eq!(numbers.get_mut(number).copied(), model.get(&number).copied());
                    assert_eq!(numbers.remove(number), model.remove(&number));
                    assert_eq!(numbers.remove(number), None);
                }
                assert_eq!(numbers.len(), model.len());
            }
            assert_eq!(numbers.values_mut().count(), model.len());
        }
    }

    #[test]
    fn a_number_comes_again_after_all_others() {
        let mut numbers = Numbers::new(8);
        let first = numbers.insert(()).unwrap();
        numbers.remove(first);
        for _ in 0..255 {
            let number = numbers.insert(()).unwrap();
            assert_ne!(number, first);
            numbers.remove(number);
        }
        assert_eq!(numbers.insert(()), Some(first));
    }
}
