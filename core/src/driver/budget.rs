//! What a driver knows of the memory budget that its connections share.

use crate::memory::{MemoryLevel, Usage};
use crate::timer::Tick;
use crate::token::Token;

/// Who goes when a memory budget is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhenFull {
    /// Whoever asks: writes that need a block fail with [`OutOfMemory`](std::io::ErrorKind::OutOfMemory), and so do, one after
    /// another, reads that wait for more than is left and flushes to peers that do not read.
    #[default]
    Refuse,
    /// Connections whose peers do not read are reset: at the first mark those that have taken nothing for a second, nor acknowledged,
    /// and before a read or a flush fails the one with the most unsent bytes, of several the oldest. A write that finds no memory
    /// fails all the same: it does not wait for somebody to go. Whoever uses a connection that was reset is told
    /// [`ConnectionAborted`](std::io::ErrorKind::ConnectionAborted).
    Reset,
}

/// What a driver knows of it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) when_full: WhenFull,
    pub(super) level: MemoryLevel,
    /// Connections that were counted.
    pub(super) counted: usize,
    /// What was used at the last look.
    pub(super) seen: Option<Usage>,
    /// Refusals that were seen.
    pub(super) refusals: usize,
    /// A connection could not be received from since the last look: nobody was told, and it waits.
    pub(super) starves: bool,
    /// When somebody may go again.
    pub(super) relief_at: Tick,
    /// Until when it counts as full.
    pub(super) full_until: Tick,
    /// Connections without room: what their peers have not taken, and at how many looks in a row that was the same.
    pub(super) suspects: Vec<(Token, (usize, usize), u8)>,
    /// When they are looked at again, and whether it is still so.
    pub(super) look_at: Tick,
    /// In which period of the pool it was looked at last, and when it is looked at again.
    pub(super) period: usize,
    pub(super) period_at: Tick,
    /// Whether the poller that is about to sleep knows that it is to be.
    pub(super) period_known: bool,
    /// A level that nobody has told of.
    pub(super) untold: Option<MemoryLevel>,
}

impl Memory {
    /// When to look again, if nothing else happens.
    pub(super) fn look_at(&self) -> Option<Tick> {
        self.is_short().then_some(self.look_at)
    }

    /// Whether connections are to be accepted slowly.
    pub(super) fn is_short(&self) -> bool {
        self.level > MemoryLevel::Normal
    }
}
