//! All blocks of a pool, those in use and those that wait, counted.

use std::ptr::NonNull;

use super::budget::Budget;
use super::config::{CLASSES, PoolConfig};
use super::keeper;
use super::lately::Lately;
use super::mapping::{FreeBlock, Kept, Mapping};
use super::size_class::SizeClass;
use crate::error::Error;
use crate::sync::{AtomicUsize, Mutex, Ordering, lock};

/// A snapshot of a pool. The figures are read one after another, so they may disagree by what other threads did
/// meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Blocks that somebody refers to.
    pub live_blocks: usize,
    /// Their capacity, in bytes.
    pub live_bytes: usize,
    /// Bytes that wait for the next request.
    pub pooled_bytes: usize,
    /// The most `live_bytes` there ever were.
    pub peak_bytes: usize,
}

/// What a pool's handles and its blocks share.
pub(super) struct Store {
    config: PoolConfig,
    classes: [Mutex<SizeClass>; CLASSES],
    live_blocks: AtomicUsize,
    live_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    pooled_bytes: AtomicUsize,
    lately: Lately,
    /// Threads that have promised to look again at what waits.
    promises: AtomicUsize,
    /// Memory that the kernel would not take back.
    kept: Mutex<Vec<Kept>>,
    kept_count: AtomicUsize,
    pub(super) budget: Budget,
}

impl Store {
    pub(super) fn new(config: PoolConfig) -> Store {
        Store {
            config: config.adjusted(),
            classes: std::array::from_fn(|_| Mutex::new(SizeClass::default())),
            live_blocks: AtomicUsize::new(0),
            live_bytes: AtomicUsize::new(0),
            peak_bytes: AtomicUsize::new(0),
            pooled_bytes: AtomicUsize::new(0),
            lately: Lately::new(),
            promises: AtomicUsize::new(0),
            kept: Mutex::new(Vec::new()),
            kept_count: AtomicUsize::new(0),
            budget: Budget::new(config.max_live_bytes),
        }
    }

    pub(super) fn config(&self) -> PoolConfig {
        self.config
    }

    pub(super) fn stats(&self) -> PoolStats {
        PoolStats {
            live_blocks: self.live_blocks.load(Ordering::Relaxed),
            live_bytes: self.live_bytes.load(Ordering::Relaxed),
            pooled_bytes: self.pooled_bytes.load(Ordering::Relaxed),
            peak_bytes: self.peak_bytes.load(Ordering::Relaxed),
        }
    }

    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// A free block of at least `min_bytes`, and its capacity.
    pub(super) fn take(&self, min_bytes: usize) -> Result<(FreeBlock, usize), Error> {
        let taken = self.take_within(min_bytes);
        taken.ok_or_else(|| {
            self.budget.refused();
            Error::OutOfMemory { bytes: min_bytes }
        })
    }

    fn take_within(&self, min_bytes: usize) -> Option<(FreeBlock, usize)> {
        let bytes = min_bytes.max(self.config.min_block_bytes);
        let class = self.config.class_of(bytes);
        let counted = match class {
            Some((_, capacity)) => capacity,
            // Beyond what a machine has, and could be added to without an overflow.
            None => Some(bytes).filter(|&bytes| bytes < usize::MAX / 4)?,
        };
        // What cannot be is not counted for a moment: others would be refused for it.
        if counted > self.budget.max_bytes().saturating_sub(self.live_bytes()) {
            return None;
        }
        // Counted before it is taken, so that many at once do not exceed the limit together.
        let live = self.live_bytes.fetch_add(counted, Ordering::Relaxed) + counted;
        let found = if live <= self.budget.max_bytes() { self.find(bytes, class) } else { None };
        let Some((block, capacity)) = found else {
            self.live_bytes.fetch_sub(counted, Ordering::Relaxed);
            return None;
        };
        let beyond = capacity - counted;
        if beyond > 0 {
            self.live_bytes.fetch_add(beyond, Ordering::Relaxed);
        }
        self.live_blocks.fetch_add(1, Ordering::Relaxed);
        if self.lately.saw(live + beyond) {
            self.peak_bytes.fetch_max(live + beyond, Ordering::Relaxed);
        }
        Some((block, capacity))
    }

    /// A free block of a size class, or one of its own.
    fn find(&self, bytes: usize, class: Option<(usize, usize)>) -> Option<(FreeBlock, usize)> {
        let Some((class, capacity)) = class else {
            let mapping = self.map(|| Mapping::of_one(bytes))?;
            // SAFETY: nobody else knows the new mapping.
            let (block, capacity) =
                unsafe { (Mapping::take(mapping), mapping.as_ref().capacity()) };
            return block.map(|(block, _)| (block, capacity));
        };
        let taken = lock(&self.classes[class]).take();
        let (block, waited) = match taken {
            Some(taken) => taken,
            None => {
                // Without the lock: it is a system call.
                let mapping = self.map(|| Mapping::of_class(capacity));
                // The kernel may have room for one.
                let mapping = mapping.or_else(|| Mapping::of_one_of_class(capacity).ok())?;
                let mut class = lock(&self.classes[class]);
                class.add(mapping);
                class.take()?
            }
        };
        if waited {
            self.pooled_bytes.fetch_sub(capacity, Ordering::Relaxed);
        }
        Some((block, capacity))
    }

    /// A new mapping, for which what waits of other sizes makes room: what is too much by now, and all of it if the kernel
    /// has no memory otherwise.
    fn map(&self, new: impl Fn() -> Result<NonNull<Mapping>, Error>) -> Option<NonNull<Mapping>> {
        self.cut();
        new().ok().or_else(|| {
            self.trim();
            new().ok()
        })
    }

    /// Takes a block back whose last reference was dropped.
    ///
    /// # Safety
    /// It was [taken](Store::take) from here, with this capacity, and nobody uses it any more.
    pub(super) unsafe fn take_back(&self, block: FreeBlock, capacity: usize) {
        self.live_blocks.fetch_sub(1, Ordering::Relaxed);
        self.live_bytes.fetch_sub(capacity, Ordering::Relaxed);
        let Some((class, _)) = self.config.class_of(capacity) else {
            // SAFETY: it was the only block of its mapping, which is in no size class.
            return self.done(unsafe { Mapping::unmap(block.mapping) });
        };
        // Counted before it is visible, so that an allocation that finds it never subtracts first.
        // Sequentially consistent, as are the promises: see `begin_period`.
        let pooled = self.pooled_bytes.fetch_add(capacity, Ordering::SeqCst) + capacity;
        let too_much = self.waits_too_much(pooled);
        // A large one that is too much gives its memory back by itself: others of its mapping may be in use for long.
        // SAFETY: nobody uses the block.
        let discarded = too_much && unsafe { Mapping::discard(&block, capacity) };
        if discarded {
            self.pooled_bytes.fetch_sub(capacity, Ordering::Relaxed);
        }
        let vacant = {
            let mut class = lock(&self.classes[class]);
            // SAFETY: the capacity says which size class it was taken from.
            let vacant = unsafe { class.put(block, discarded) };
            vacant.then(|| class.pop_discarded())
        };
        match vacant {
            Some(Some(mapping)) => self.unmap(mapping),
            Some(None) => self.shrink(),
            None => {}
        }
    }

    /// Unmaps all vacant mappings.
    pub(super) fn trim(&self) {
        for class in &self.classes {
            while let Some(mapping) = { lock(class).pop_vacant() } {
                self.unmap(mapping);
            }
        }
    }

    /// How much may wait. Where somebody looks at it again, what was in use lately may be in use again.
    fn waiting_max(&self) -> usize {
        let max = self.config.max_pooled_bytes;
        if !keeper::keeps(self) && self.promises.load(Ordering::SeqCst) == 0 {
            return max;
        }
        // Sizes have their peaks at different times, so not as much as was in use and no more.
        max.saturating_add(self.lately.peak().saturating_sub(self.live_bytes()))
    }

    fn waits_too_much(&self, pooled: usize) -> bool {
        if pooled <= self.config.max_pooled_bytes {
            return false;
        }
        let too_much = pooled > self.waiting_max();
        if !too_much && keeper::keeps(self) && keeper::promise(true) {
            self.promises.fetch_add(1, Ordering::Relaxed);
        }
        too_much
    }

    fn pooled_bytes(&self) -> usize {
        self.pooled_bytes.load(Ordering::SeqCst)
    }

    /// The calling thread looks after the pool from now on: it [begins periods](Store::begin_period).
    pub(super) fn keep(&self) {
        keeper::keep(self);
    }

    /// It does so no longer.
    pub(super) fn let_go(&self) {
        if keeper::let_go() {
            self.promises.fetch_sub(1, Ordering::SeqCst);
        }
        self.cut();
    }

    /// Whether the calling thread has promised to [begin a period](Store::begin_period) when this one is over.
    pub(super) fn is_promised(&self) -> bool {
        keeper::keeps(self) && keeper::has_promised()
    }

    /// Whether more waits than may wait for good.
    fn lets_more_wait(&self) -> bool {
        let max = self.config.max_pooled_bytes;
        self.pooled_bytes() > max && self.waiting_max() > max
    }

    /// What was in use at most before the last period is forgotten, and what waited for it is given back. See
    /// [`Lately::begin_period`].
    pub(super) fn begin_period(&self, known: usize) -> usize {
        let period = self.lately.begin_period(known, self.live_bytes());
        self.cut();
        if !self.lets_more_wait() && keeper::promise(false) {
            self.promises.fetch_sub(1, Ordering::SeqCst);
            // Until now others may have let more wait; what they counted before they looked at the promises is seen here, and
            // promised again.
            self.cut();
        }
        period
    }

    /// Gives back what waits and is too much: mappings, and then large blocks of those that others use.
    fn cut(&self) {
        self.shrink();
        for class in &self.classes {
            let pooled = self.pooled_bytes();
            if !self.waits_too_much(pooled) {
                return;
            }
            // Others may have freed some meanwhile, and so let more wait.
            let excess = pooled.saturating_sub(self.waiting_max());
            let discarded = lock(class).discard(excess);
            self.pooled_bytes.fetch_sub(discarded, Ordering::Relaxed);
        }
    }

    /// Unmaps vacant mappings until what waits is not too much, or none is left.
    fn shrink(&self) {
        // Looked at after the block was put: whoever makes the mapping vacant sees, through the lock, what the
        // others have counted who put theirs before.
        while self.waits_too_much(self.pooled_bytes()) {
            let fattest = self.classes.iter().max_by_key(|class| lock(class).vacant_bytes());
            let Some(mapping) = fattest.and_then(|class| lock(class).pop_vacant()) else { return };
            self.unmap(mapping);
        }
    }

    /// Unmaps a vacant mapping that was taken out of its size class.
    fn unmap(&self, mapping: NonNull<Mapping>) {
        // SAFETY: in no list and vacant, so nobody else knows the mapping.
        unsafe {
            self.pooled_bytes.fetch_sub(mapping.as_ref().waiting_bytes(), Ordering::Relaxed);
            self.done(Mapping::unmap(mapping));
        }
    }

    /// Something was given back to the kernel, or could not be: then it is tried again when something else was.
    fn done(&self, unmapped: Result<(), Kept>) {
        match unmapped {
            Err(kept) => {
                self.kept_count.fetch_add(1, Ordering::Relaxed);
                lock(&self.kept).push(kept);
            }
            Ok(()) if self.kept_count.load(Ordering::Relaxed) > 0 => self.try_again(),
            Ok(()) => {}
        }
    }

    #[cold]
    fn try_again(&self) {
        let mut all = lock(&self.kept);
        while let Some(kept) = all.pop() {
            if let Err(kept) = kept.unmap() {
                all.push(kept);
                break;
            }
            self.kept_count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
