//! A hierarchical timing wheel.
//!
//! Six levels of 64 slots: a slot of level 0 is one tick wide, one of level n is 64ⁿ. A timer lies in the level
//! that its distance demands, and moves down as its time comes near: each timer is touched six times at most,
//! whatever the number of timers. Timers are named by small integers, slab indices, and linked by them in one array,
//! so setting and clearing allocate nothing once the array has grown.

use crate::places::Places;

/// A point in time, in ticks since the owner's own beginning. duopoll's tick is a millisecond.
pub type Tick = u64;

const LEVELS: usize = 6;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Ticks that the wheel spans: two years of milliseconds. What is set beyond is looked at again by then.
const SPAN: Tick = 1 << (SLOT_BITS * LEVELS as u32);

const NONE: u32 = u32::MAX;

/// Timers by slab index, at most one each.
#[derive(Debug)]
pub struct Wheel {
    /// Everything before this tick has fired.
    now: Tick,
    /// First timer of each slot.
    heads: [[u32; SLOTS]; LEVELS],
    /// Which slots are not empty.
    occupied: [u64; LEVELS],
    timers: Places<Timer>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    deadline: Tick,
    next: u32,
    prev: u32,
    /// `level * SLOTS + slot`, or `UNSET`.
    place: u16,
}

const UNSET: u16 = u16::MAX;

impl Wheel {
    /// An empty wheel.
    pub fn new(now: Tick) -> Wheel {
        Wheel {
            now,
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            timers: Places::new(),
            len: 0,
        }
    }

    /// Timers that are set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When the timer is set to fire.
    pub fn deadline(&self, index: usize) -> Option<Tick> {
        self.timers.get(index).filter(|timer| timer.place != UNSET).map(|timer| timer.deadline)
    }

    /// Sets the timer, whether or not it was set before. A deadline that has passed fires at the next
    /// [`advance`](Wheel::advance). O(1).
    pub fn set(&mut self, index: usize, deadline: Tick) {
        if self.deadline(index).is_some() {
            self.unlink(index as u32);
            self.len -= 1;
        }
        self.timers.reach(index, || Timer { deadline: 0, next: NONE, prev: NONE, place: UNSET });
        self.timers[index].deadline = deadline;
        self.len += 1;
        self.link(index as u32);
    }

    /// Clears the timer, if it is set. O(1).
    pub fn clear(&mut self, index: usize) {
        if self.deadline(index).is_some() {
            self.unlink(index as u32);
            self.len -= 1;
            self.shrink();
        }
    }

    /// Gives back what a burst has left behind.
    fn shrink(&mut self) {
        self.timers.removed(self.len, |timer| timer.place == UNSET);
    }

    /// Moves to `now` and takes out one timer whose deadline is not later; call again until there is none.
    /// O(1) per timer, and per level of the wheel that has come round.
    pub fn advance(&mut self, now: Tick) -> Option<usize> {
        loop {
            let slot = (self.now % SLOTS as Tick) as usize;
            let head = self.heads[0][slot];
            // A slot of level 0 holds one tick's timers, and late ones lie in the slot of the present tick.
            if head != NONE && self.now <= now {
                self.unlink(head);
                self.len -= 1;
                self.shrink();
                return Some(head as usize);
            }
            if self.now >= now {
                return None;
            }
            self.now = match self.next_change() {
                Some(tick) => tick.min(now),
                None => now,
            };
            self.cascade();
        }
    }

    /// When to call [`advance`](Wheel::advance) next: never later than the first deadline, though it may be
    /// earlier for one that is far off.
    pub fn next_expiry(&self) -> Option<Tick> {
        let slot = (self.now % SLOTS as Tick) as usize;
        if self.heads[0][slot] != NONE { Some(self.now) } else { self.next_change() }
    }

    /// The next tick, behind `now`, at which a slot fires or comes down a level.
    fn next_change(&self) -> Option<Tick> {
        (0..LEVELS)
            .filter_map(|level| {
                let shift = SLOT_BITS * level as u32;
                let position = self.now >> shift;
                let slot = (position % SLOTS as Tick) as u32;
                // Slots ahead of the present one, in the order in which they come; the present one comes last.
                let ahead = self.occupied[level].rotate_right((slot + 1) % SLOTS as u32);
                let steps = (ahead != 0).then(|| Tick::from(ahead.trailing_zeros()) + 1)?;
                Some((position + steps) << shift)
            })
            .min()
    }

    /// Brings down the timers of every slot that begins at `now`.
    fn cascade(&mut self) {
        for level in (1..LEVELS).rev() {
            let shift = SLOT_BITS * level as u32;
            if self.now & ((1 << shift) - 1) != 0 {
                continue;
            }
            let slot = ((self.now >> shift) % SLOTS as Tick) as usize;
            while self.heads[level][slot] != NONE {
                let index = self.heads[level][slot];
                self.unlink(index);
                self.link(index);
                debug_assert_ne!(
                    self.timers[index as usize].place as usize,
                    level * SLOTS + slot,
                    "a timer must leave the slot that comes down"
                );
            }
        }
    }

    fn link(&mut self, index: u32) {
        let deadline = self.timers[index as usize].deadline.max(self.now);
        // One slot less than the span, so that a timer never lands in the slot that is just coming down.
        let deadline = deadline.min(self.now + SPAN - (SPAN >> SLOT_BITS) - 1);
        let distance = deadline - self.now;
        let mut level = 0;
        while level + 1 < LEVELS && distance >= 1 << (SLOT_BITS * (level as u32 + 1)) {
            level += 1;
        }
        let mut position = deadline >> (SLOT_BITS * level as u32);
        // At the level's edge the slot may be the present one, a full turn ahead; one level up it is not.
        if level > 0 && position - (self.now >> (SLOT_BITS * level as u32)) >= SLOTS as Tick {
            level += 1;
            position >>= SLOT_BITS;
        }
        let slot = (position % SLOTS as Tick) as usize;
        let head = self.heads[level][slot];
        let timer = &mut self.timers[index as usize];
        timer.place = (level * SLOTS + slot) as u16;
        timer.prev = NONE;
        timer.next = head;
        if head != NONE {
            self.timers[head as usize].prev = index;
        }
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Timer { next, prev, place, .. } = self.timers[index as usize];
        let (level, slot) = (place as usize / SLOTS, place as usize % SLOTS);
        if prev == NONE {
            self.heads[level][slot] = next;
            if next == NONE {
                self.occupied[level] &= !(1 << slot);
            }
        } else {
            self.timers[prev as usize].next = next;
        }
        if next != NONE {
            self.timers[next as usize].prev = prev;
        }
        self.timers[index as usize].place = UNSET;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn fire_all(wheel: &mut Wheel, now: Tick) -> Vec<usize> {
        let mut fired: Vec<_> = std::iter::from_fn(|| wheel.advance(now)).collect();
        fired.sort_unstable();
        fired
    }

    #[test]
    fn fires_at_its_tick_and_not_before() {
        let mut wheel = Wheel::new(5);
        for (index, deadline) in [(0, 6), (1, 68), (2, 69), (3, 5 + 4096), (4, 5 + 300_000)] {
            wheel.set(index, deadline);
        }
        assert_eq!(fire_all(&mut wheel, 5), []);
        assert_eq!(fire_all(&mut wheel, 6), [0]);
        assert_eq!(fire_all(&mut wheel, 67), []);
        assert_eq!(fire_all(&mut wheel, 69), [1, 2]);
        assert_eq!(fire_all(&mut wheel, 4100), []);
        assert_eq!(fire_all(&mut wheel, 4101), [3]);
        assert_eq!(fire_all(&mut wheel, 1_000_000), [4]);
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_past_deadline_fires_at_once() {
        let mut wheel = Wheel::new(1000);
        wheel.set(7, 3);
        assert_eq!(wheel.next_expiry(), Some(1000));
        assert_eq!(wheel.advance(1000), Some(7));
    }

    #[test]
    fn beyond_the_span_is_looked_at_again() {
        let mut wheel = Wheel::new(0);
        wheel.set(0, SPAN * 3);
        assert_eq!(wheel.advance(SPAN * 3 - 1), None);
        assert_eq!(wheel.advance(SPAN * 3), Some(0));
    }

    /// Miri is slow.
    const OPS_MAX: usize = if cfg!(miri) { 8 } else { 80 };

    #[derive(Clone, Debug)]
    enum Op {
        Set(usize, Tick),
        Clear(usize),
        Advance(Tick),
    }

    fn op() -> impl Strategy<Value = Op> {
        let ahead = prop_oneof![0u64..4, 0u64..200, 0u64..10_000, 0u64..20_000_000];
        prop_oneof![
            3 => (0usize..50, ahead.clone()).prop_map(|(index, ahead)| Op::Set(index, ahead)),
            1 => (0usize..50).prop_map(Op::Clear),
            2 => ahead.prop_map(Op::Advance),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn behaves_like_a_sorted_map(start in 0u64..1 << 30, ops in prop::collection::vec(op(), 1..OPS_MAX)) {
            let (mut wheel, mut model, mut now) = (Wheel::new(start), BTreeMap::new(), start);
            for op in ops {
                match op {
                    Op::Set(index, ahead) => {
                        wheel.set(index, now + ahead);
                        model.insert(index, now + ahead);
                    }
                    Op::Clear(index) => {
                        wheel.clear(index);
                        model.remove(&index);
                    }
                    Op::Advance(ahead) => {
                        now += ahead;
                        let mut due: Vec<_> =
                            model.iter().filter(|(_, at)| **at <= now).map(|(i, _)| *i).collect();
                        due.sort_unstable();
                        prop_assert_eq!(fire_all(&mut wheel, now), due);
                        model.retain(|_, at| *at > now);
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                let first = model.values().min().copied();
                prop_assert_eq!(wheel.next_expiry().is_some(), first.is_some());
                if let (Some(next), Some(first)) = (wheel.next_expiry(), first) {
                    prop_assert!(next <= first, "would wake at {next}, due at {first}");
                }
            }
        }
    }
}
