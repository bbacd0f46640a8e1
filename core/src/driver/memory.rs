//! The memory that the connections of a poller share with others: what each may hold, and who goes when there is none left.

use super::Driver;
use super::budget::WhenFull;
use super::slot::Slot;
use crate::connection::{Phase, Reason};
use crate::memory::{MemoryLevel, Usage};
use crate::poll::Poll;
use crate::timer::Tick;
use crate::token::Token;

/// Between two connections that are ended, or reads that fail, for want of memory.
const RELIEF_MS: Tick = 10;
/// After a refusal a budget counts as full for so long.
const FULL_MS: Tick = 1_000;
/// How often it is looked again while memory is short, and after how many looks at which nothing has moved those go that do not read.
const LOOK_MS: Tick = 250;
const SUSPICIONS: u8 = 4;
/// What was in use may wait for its next use for as long as this, and for twice as long at most.
const PERIOD_MS: Tick = 500;
/// So many of them, those with the most unsent bytes.
const SUSPECTS_MAX: usize = 64;
/// Of the connections that hold most for their peers, so many are asked whether these read.
const ASKED_MAX: usize = 8;

impl Driver {
    /// Who goes when the budget is used up.
    pub fn set_when_full(&mut self, when_full: WhenFull) {
        self.memory.when_full = when_full;
    }

    /// To which level the budget has come, if that is new, and no other poller has seen it.
    pub fn take_memory_level(&mut self) -> Option<MemoryLevel> {
        self.memory.untold.take()
    }

    /// Looks at what is used, and sees to it that something is left.
    pub(super) fn look_at_memory<P: Poll>(&mut self, engine: &mut P, now: Tick) {
        // In whatever phase: but not what is only watched or listens, which holds nothing.
        let connections = (self.stats.connections - self.stats.closed) as usize;
        let pool = self.mailbox.pool();
        if connections != self.memory.counted {
            pool.count_connections(self.memory.counted, connections);
            self.memory.counted = connections;
        }
        if now >= self.memory.period_at {
            self.memory.period_at = now + PERIOD_MS;
            self.memory.period = pool.begin_period(self.memory.period);
        }
        let usage = pool.usage();
        // Who was told that there is none needs nobody to go.
        let starves = std::mem::take(&mut self.memory.starves);
        if self.memory.seen == Some(usage) && !starves && !self.memory.is_short() {
            return;
        }
        self.memory.seen = Some(usage);
        self.mailbox.set_share(usage.share());
        let was_refused = usage.refusals != self.memory.refusals;
        self.memory.refusals = usage.refusals;
        let before = self.memory.level;
        if starves || (was_refused && usage.is_nearly_full()) {
            self.memory.full_until = now + FULL_MS;
            self.memory.level = MemoryLevel::Full;
        } else if before != MemoryLevel::Full || now >= self.memory.full_until {
            self.memory.level = usage.level(before);
        }
        if self.memory.level != before && self.mailbox.pool().begins_level(self.memory.level) {
            self.memory.untold = Some(self.memory.level);
        }
        let resets = self.memory.when_full == WhenFull::Reset;
        let somebody_goes = starves || (resets && was_refused && usage.is_nearly_full());
        if somebody_goes && now >= self.memory.relief_at {
            self.memory.relief_at = now + RELIEF_MS;
            self.relieve(engine, usage);
        }
        if self.memory.is_short() && now >= self.memory.look_at {
            self.memory.look_at = now + LOOK_MS;
            if resets {
                self.reset_who_does_not_read(engine);
            }
        }
    }

    /// When memory is looked at next, if nothing else happens.
    pub(super) fn memory_due(&mut self) -> Option<Tick> {
        self.memory.period_known = self.waits_for_period();
        let period = self.memory.period_known.then_some(self.memory.period_at);
        period.into_iter().chain(self.memory.look_at()).min()
    }

    /// Whether what waits in the pool is to be looked at when the period is over.
    pub(super) fn waits_for_period(&self) -> bool {
        // A clock that a test has stand does not move for it.
        self.mailbox.clock().is_real() && self.mailbox.pool().is_promised()
    }

    /// Whether the budget has come to another level since it was looked at.
    pub(super) fn memory_changes_level(&self) -> bool {
        let level = self.memory.level;
        level != MemoryLevel::Full && self.mailbox.pool().usage().level(level) != level
    }

    /// Memory is getting short: whose peer has taken nothing for a second goes, until there is enough again. Half of them at a time, those with the
    /// most unsent bytes.
    #[cold]
    fn reset_who_does_not_read<P: Poll>(&mut self, engine: &mut P) {
        let mut candidates = self.unsent();
        candidates.truncate(SUSPECTS_MAX);
        candidates.retain(|(token, _)| !engine.pending(*token).room);
        let before = std::mem::take(&mut self.memory.suspects);
        for (token, _) in candidates {
            let Some(stream) = self.stream(token) else { continue };
            let outstanding = stream.shared.outstanding();
            let same =
                before.iter().find(|(known, bytes, _)| (*known, *bytes) == (token, outstanding));
            let looks = same.map_or(0, |(.., looks)| (looks + 1).min(SUSPICIONS));
            self.memory.suspects.push((token, outstanding, looks));
        }
        let silent = self.memory.suspects.iter().filter(|(.., looks)| *looks >= SUSPICIONS);
        let silent: Vec<_> = silent.map(|(token, ..)| *token).collect();
        for token in silent.iter().take(silent.len().div_ceil(2)) {
            self.stats.memory_resets += 1;
            self.deregister(engine, *token, Reason::Aborted);
        }
    }

    /// Somebody waits for memory: one goes who holds what others need.
    #[cold]
    fn relieve<P: Poll>(&mut self, engine: &mut P, usage: Usage) {
        if self.memory.when_full == WhenFull::Reset {
            if let Some(token) = self.most_unsent(engine) {
                self.stats.memory_resets += 1;
                return self.deregister(engine, token, Reason::Aborted);
            }
        }
        // Without a limit, or below it, it was the kernel who has refused, and it goes who was refused; or if he waits for
        // nothing that he could be refused, as between two requests, who waits for most.
        let full = usage.is_nearly_full();
        let left = if full { usage.free_bytes() } else { 0 };
        let waits = |(token, slot): (Token, &Slot)| match slot {
            Slot::Stream(stream) => {
                Some((full || stream.starved, stream.shared.awaits_more_than(left)?, token))
            }
            _ => None,
        };
        let waiting = self.slots.entries().filter_map(waits);
        let most = waiting.max_by_key(|(refused, need, _)| (*refused, *need));
        if let Some(stream) = most.and_then(|(.., token)| self.stream(token)) {
            stream.shared.clone().lacks_memory();
            self.stats.memory_refusals += 1;
            return;
        }
        let stuck = self.most_unsent(engine);
        if let Some(stream) = stuck.and_then(|token| self.stream(token)) {
            let told = stream.shared.clone().lacks_room();
            self.stats.memory_refusals += u64::from(told);
        }
    }

    /// The connection with the most unsent bytes of those whose peers do not read; of several the oldest.
    fn most_unsent<P: Poll>(&self, engine: &mut P) -> Option<Token> {
        let mut tokens = self.unsent().into_iter().map(|(token, _)| token).take(ASKED_MAX);
        tokens.find(|token| !engine.pending(*token).room)
    }

    /// The connections with unsent bytes, those with most first; of several the oldest.
    fn unsent(&self) -> Vec<(Token, usize)> {
        let unsent = |(token, slot): (Token, &Slot)| match slot {
            Slot::Stream(stream) if stream.shared.phase() == Phase::Open => {
                let (unsent, id) = stream.shared.unsent();
                (unsent > 0).then_some((unsent, std::cmp::Reverse(id), token))
            }
            _ => None,
        };
        let mut candidates: Vec<_> = self.slots.entries().filter_map(unsent).collect();
        candidates.sort_unstable_by_key(|(unsent, id, _)| std::cmp::Reverse((*unsent, *id)));
        candidates.into_iter().map(|(unsent, _, token)| (token, unsent)).collect()
    }

    /// The connections are gone.
    pub(super) fn count_out(&mut self) {
        self.mailbox.pool().count_connections(std::mem::take(&mut self.memory.counted), 0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::clock::Clock;
    use crate::mailbox::Mailbox;
    use crate::memory::{Pool, PoolConfig};
    use crate::poll::{Notify, Operators};

    #[derive(Debug)]
    struct Nobody;

    impl Notify for Nobody {
        fn notify(&self) {}
    }

    impl Clock for Nobody {
        fn now(&self) -> Tick {
            0
        }

        fn tick_of(&self, _: Instant) -> Tick {
            0
        }
    }

    #[test]
    fn a_poller_that_is_about_to_sleep_hears_of_what_waits_meanwhile() {
        let pool = Pool::new(PoolConfig { max_pooled_bytes: 0, ..PoolConfig::default() });
        let mailbox =
            Arc::new(Mailbox::new(Arc::new(Nobody), Arc::new(Nobody)).with_pool(pool.clone()));
        let _entered = mailbox.enter();
        let mut driver = Driver::new(mailbox.clone());
        assert_eq!((driver.next_expiry(), driver.is_due_sooner()), (None, false));
        drop(pool.allocate(64 << 10));
        assert!(driver.is_due_sooner());
        // Now it knows.
        assert!(driver.next_expiry().is_some());
        assert!(!driver.is_due_sooner());
        drop(pool.allocate(64 << 10));
        assert!(!driver.is_due_sooner());
    }
}
