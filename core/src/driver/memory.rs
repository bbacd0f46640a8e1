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
        let connections = self.slots.len();
        let pool = self.mailbox.pool();
        if connections != self.memory.counted {
            pool.count_connections(self.memory.counted, connections);
            self.memory.counted = connections;
        }
        let usage = pool.usage();
        self.mailbox.set_share(usage.share());
        let was_refused = usage.refusals != self.memory.refusals;
        self.memory.refusals = usage.refusals;
        let before = self.memory.level;
        if was_refused {
            self.memory.full_until = now + FULL_MS;
            self.memory.level = MemoryLevel::Full;
        } else if before != MemoryLevel::Full || now >= self.memory.full_until {
            self.memory.level = usage.level(before);
        }
        if self.memory.level != before && self.mailbox.pool().begins_level(self.memory.level) {
            self.memory.untold = Some(self.memory.level);
        }
        if was_refused && now >= self.memory.relief_at {
            self.memory.relief_at = now + RELIEF_MS;
            self.relieve(engine, usage);
        }
    }

    /// Somebody was refused: one goes who holds what others need.
    #[cold]
    fn relieve<P: Poll>(&mut self, engine: &mut P, usage: Usage) {
        if self.memory.when_full == WhenFull::Reset {
            if let Some(token) = self.most_unsent(engine) {
                self.stats.memory_resets += 1;
                return self.deregister(engine, token, Reason::Aborted);
            }
        }
        // Without a limit, or below it, it was the kernel who has refused.
        let full = usage.free_bytes() < usage.max_bytes / 8;
        let left = if full { usage.free_bytes() } else { 0 };
        let waits = |(token, slot): (Token, &Slot)| match slot {
            Slot::Stream(stream) => Some((stream.shared.awaits_more_than(left)?, token)),
            Slot::Listener(_) | Slot::Watched(_) => None,
        };
        let most = self.slots.entries().filter_map(waits).max_by_key(|(need, _)| *need);
        if let Some(stream) = most.and_then(|(_, token)| self.stream(token)) {
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
        let unsent = |(token, slot): (Token, &Slot)| match slot {
            Slot::Stream(stream) if stream.shared.phase() == Phase::Open => {
                let (unsent, id) = stream.shared.unsent();
                (unsent > 0).then_some((unsent, std::cmp::Reverse(id), token))
            }
            _ => None,
        };
        let mut candidates: Vec<_> = self.slots.entries().filter_map(unsent).collect();
        candidates.sort_unstable_by_key(|(unsent, id, _)| std::cmp::Reverse((*unsent, *id)));
        let mut tokens = candidates.into_iter().map(|(.., token)| token).take(ASKED_MAX);
        tokens.find(|token| !engine.pending(*token).room)
    }

    /// The connections are gone.
    pub(super) fn count_out(&mut self) {
        self.mailbox.pool().count_connections(std::mem::take(&mut self.memory.counted), 0);
    }
}
