//! A bounded number of answers. What was not asked for since the hand came by last makes room (CLOCK).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::answer::Answer;
use crate::query::Key;

/// Larger ones are not kept, in bytes: so the whole is bounded, too.
const ANSWER_BYTES_MAX: usize = 4 << 10;

#[derive(Debug)]
pub(crate) struct Cache {
    places: Vec<Place>,
    of: HashMap<Key, usize>,
    places_max: usize,
    hand: usize,
}

#[derive(Debug)]
struct Place {
    key: Key,
    answer: Arc<Answer>,
    /// Since the hand came by.
    asked_for: bool,
}

impl Cache {
    pub(crate) fn new(places_max: usize) -> Cache {
        Cache { places: Vec::new(), of: HashMap::new(), places_max, hand: 0 }
    }

    pub(crate) fn get(&mut self, key: &Key, now: Instant) -> Option<Arc<Answer>> {
        let place = &mut self.places[*self.of.get(key)?];
        if !place.answer.is_fresh(now) {
            place.asked_for = false;
            return None;
        }
        place.asked_for = true;
        Some(place.answer.clone())
    }

    pub(crate) fn insert(&mut self, key: &Key, answer: &Arc<Answer>, now: Instant) {
        if self.places_max == 0 || answer.len() > ANSWER_BYTES_MAX || !answer.is_fresh(now) {
            return;
        }
        let answer = answer.clone();
        if let Some(at) = self.of.get(key) {
            self.places[*at].answer = answer;
            return;
        }
        let place = Place { key: key.clone(), answer, asked_for: false };
        let at = if self.places.len() < self.places_max {
            self.places.push(place);
            self.places.len() - 1
        } else {
            let at = self.make_room(now);
            self.of.remove(&self.places[at].key);
            self.places[at] = place;
            at
        };
        self.of.insert(key.clone(), at);
    }

    fn make_room(&mut self, now: Instant) -> usize {
        loop {
            let at = self.hand;
            self.hand = (at + 1) % self.places.len();
            let place = &mut self.places[at];
            if !place.asked_for || !place.answer.is_fresh(now) {
                return at;
            }
            place.asked_for = false;
        }
    }
}
