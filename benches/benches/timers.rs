//! The timing wheel next to a `BTreeSet` and a `BinaryHeap`, with 1, 1,000 and 1,000,000 timers.
//!
//! The time of an iteration is that of one operation on one timer. Deadlines lie up to a minute ahead, and timers are
//! taken in no order of their deadlines, as connections are.
//!
//! `cargo bench -p duopoll-benches --bench timers`

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group,
    criterion_main,
};
use duopoll_core::{Tick, Wheel};

const POPULATIONS: [usize; 3] = [1, 1_000, 1_000_000];
/// Deadlines are this far ahead at most.
const AHEAD_TICKS: Tick = 60_000;
/// Operations that are timed together, at least, so that reading the clock does not count.
const OPERATIONS_MIN: usize = 256;

/// What each structure has to do.
trait Timers {
    fn new() -> Self;
    /// Sets a timer, whether or not it was set before.
    fn set(&mut self, index: usize, deadline: Tick);
    fn clear(&mut self, index: usize);
    /// When to look again.
    fn next_expiry(&mut self) -> Option<Tick>;
    /// Takes out one timer that is due.
    fn advance(&mut self, now: Tick) -> Option<usize>;
}

impl Timers for Wheel {
    fn new() -> Self {
        Wheel::new(0)
    }

    fn set(&mut self, index: usize, deadline: Tick) {
        Wheel::set(self, index, deadline);
    }

    fn clear(&mut self, index: usize) {
        Wheel::clear(self, index);
    }

    fn next_expiry(&mut self) -> Option<Tick> {
        Wheel::next_expiry(self)
    }

    fn advance(&mut self, now: Tick) -> Option<usize> {
        Wheel::advance(self, now)
    }
}

/// Deadlines by timer, and timers in the order of their deadlines.
struct Tree {
    deadlines: Vec<Option<Tick>>,
    order: BTreeSet<(Tick, usize)>,
}

impl Timers for Tree {
    fn new() -> Self {
        Tree { deadlines: Vec::new(), order: BTreeSet::new() }
    }

    fn set(&mut self, index: usize, deadline: Tick) {
        self.clear(index);
        if index >= self.deadlines.len() {
            self.deadlines.resize(index + 1, None);
        }
        self.deadlines[index] = Some(deadline);
        self.order.insert((deadline, index));
    }

    fn clear(&mut self, index: usize) {
        if let Some(deadline) = self.deadlines.get_mut(index).and_then(Option::take) {
            self.order.remove(&(deadline, index));
        }
    }

    fn next_expiry(&mut self) -> Option<Tick> {
        self.order.first().map(|(deadline, _)| *deadline)
    }

    fn advance(&mut self, now: Tick) -> Option<usize> {
        let (deadline, index) = *self.order.first()?;
        if deadline > now {
            return None;
        }
        self.order.pop_first();
        self.deadlines[index] = None;
        Some(index)
    }
}

/// A heap whose entries are passed over when their timer has another deadline by then. It is swept when more than
/// half of it is such entries.
struct Heap {
    deadlines: Vec<Option<Tick>>,
    set: usize,
    order: BinaryHeap<Reverse<(Tick, usize)>>,
}

impl Timers for Heap {
    fn new() -> Self {
        Heap { deadlines: Vec::new(), set: 0, order: BinaryHeap::new() }
    }

    fn set(&mut self, index: usize, deadline: Tick) {
        self.clear(index);
        if index >= self.deadlines.len() {
            self.deadlines.resize(index + 1, None);
        }
        self.deadlines[index] = Some(deadline);
        self.set += 1;
        self.order.push(Reverse((deadline, index)));
    }

    fn clear(&mut self, index: usize) {
        if self.deadlines.get_mut(index).and_then(Option::take).is_some() {
            self.set -= 1;
            if self.order.len() > 2 * self.set + 64 {
                let deadlines = &self.deadlines;
                self.order
                    .retain(|Reverse((deadline, index))| deadlines[*index] == Some(*deadline));
            }
        }
    }

    fn next_expiry(&mut self) -> Option<Tick> {
        while let Some(Reverse((deadline, index))) = self.order.peek() {
            if self.deadlines[*index] == Some(*deadline) {
                return Some(*deadline);
            }
            self.order.pop();
        }
        None
    }

    fn advance(&mut self, now: Tick) -> Option<usize> {
        if self.next_expiry()? > now {
            return None;
        }
        let Reverse((_, index)) = self.order.pop()?;
        self.deadlines[index] = None;
        self.set -= 1;
        Some(index)
    }
}

/// What is timed.
#[derive(Clone, Copy, PartialEq)]
enum Operation {
    /// A timer that was not set.
    Set,
    /// A timer that is set already.
    Change,
    /// A timer fires.
    Hit,
    /// A timer is cleared before it fires.
    Miss,
}

/// Some structures of the same kind and size: one, unless the timers are few.
struct Bench<T> {
    structures: Vec<T>,
    /// The time of each.
    now: Tick,
    /// Timers with how far their deadlines are ahead, in the order in which they are used.
    timers: Vec<(usize, Tick)>,
    /// The same timers with other deadlines.
    later: Vec<(usize, Tick)>,
}

impl<T: Timers> Bench<T> {
    fn new(population: usize) -> Bench<T> {
        let count = OPERATIONS_MIN.div_ceil(population);
        // A step that has no divisor in common with the populations reaches every timer once.
        let index = |turn: usize| turn * 7919 % population;
        let timers = |salt| (0..population).map(|turn| (index(turn), ahead(turn, salt))).collect();
        Bench {
            structures: (0..count).map(|_| T::new()).collect(),
            now: 0,
            timers: timers(0),
            later: timers(1),
        }
    }

    /// So many operations, or some more, as the population demands; the time of so many.
    fn run(&mut self, operation: Operation, operations: u64) -> Duration {
        let each = (self.structures.len() * self.timers.len()) as u64;
        let passes = operations.div_ceil(each);
        let mut time = Duration::ZERO;
        for _ in 0..passes {
            time += self.pass(operation);
        }
        time.mul_f64(operations as f64 / (passes * each) as f64)
    }

    /// Every timer of every structure goes through its life once; returns the time of the operation.
    fn pass(&mut self, operation: Operation) -> Duration {
        let set = timed(|| self.set_all(false));
        let change = match operation {
            Operation::Change => timed(|| self.set_all(true)),
            _ => Duration::ZERO,
        };
        let end = timed(|| match operation {
            Operation::Hit => self.fire_all(),
            _ => self.clear_all(),
        });
        assert!(self.structures.iter_mut().all(|timers| timers.next_expiry().is_none()));
        match operation {
            Operation::Set => set,
            Operation::Change => change,
            Operation::Hit | Operation::Miss => end,
        }
    }

    fn set_all(&mut self, later: bool) {
        let list = if later { &self.later } else { &self.timers };
        for structure in &mut self.structures {
            for (index, ahead) in list {
                structure.set(*index, self.now + ahead);
            }
        }
    }

    fn clear_all(&mut self) {
        for structure in &mut self.structures {
            for (index, _) in &self.timers {
                structure.clear(*index);
            }
        }
    }

    /// Lets the time go to each structure's next expiry, as a poller does, until every timer has fired.
    fn fire_all(&mut self) {
        let end = self.now + AHEAD_TICKS;
        for structure in &mut self.structures {
            let mut fired = 0;
            let mut now = self.now;
            while let Some(next) = structure.next_expiry() {
                assert!(next <= end, "a timer is late");
                now = now.max(next);
                while structure.advance(now).is_some() {
                    fired += 1;
                }
            }
            assert_eq!(fired, self.timers.len());
            // For the wheel, whose time is its own.
            assert!(structure.advance(end).is_none());
        }
        self.now = end;
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Ticks to a deadline, scattered (splitmix64).
fn ahead(turn: usize, salt: u64) -> Tick {
    let mut z = (2 * turn as u64 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    1 + (z ^ (z >> 31)) % AHEAD_TICKS
}

fn timers(c: &mut Criterion) {
    let operations = [
        (Operation::Set, "set"),
        (Operation::Change, "change"),
        (Operation::Hit, "hit"),
        (Operation::Miss, "miss"),
    ];
    for (operation, name) in operations {
        let mut group = c.benchmark_group(format!("timeouts, {name}"));
        group
            .throughput(Throughput::Elements(1))
            .sampling_mode(SamplingMode::Flat)
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        for population in POPULATIONS {
            bench::<Wheel>(&mut group, "wheel", population, operation);
            bench::<Tree>(&mut group, "BTreeSet", population, operation);
            bench::<Heap>(&mut group, "BinaryHeap", population, operation);
        }
        group.finish();
    }
}

fn bench<T: Timers>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    population: usize,
    operation: Operation,
) {
    let mut bench = Bench::<T>::new(population);
    group.bench_function(BenchmarkId::new(name, population), |b| {
        b.iter_custom(|operations| bench.run(operation, operations));
    });
}

criterion_group!(benches, timers);
criterion_main!(benches);
