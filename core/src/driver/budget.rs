//! What a driver knows of the memory budget that its connections share.

use crate::memory::MemoryLevel;
use crate::timer::Tick;

/// Who goes when a memory budget is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhenFull {
    /// Whoever asks: writes that need a block fail with [`OutOfMemory`](std::io::ErrorKind::OutOfMemory), and so do, one after
    /// another, reads that wait for more than is left and flushes to peers that do not read.
    #[default]
    Refuse,
    /// Before that, connections whose peers do not read are reset: those with the most unsent bytes, and of those the oldest.
    Reset,
}

/// What a driver knows of it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) when_full: WhenFull,
    pub(super) level: MemoryLevel,
    /// Connections that were counted.
    pub(super) counted: usize,
    /// Refusals that were seen.
    pub(super) refusals: usize,
    /// When somebody may go again.
    pub(super) relief_at: Tick,
    /// Until when it counts as full.
    pub(super) full_until: Tick,
    /// A level that nobody has told of.
    pub(super) untold: Option<MemoryLevel>,
}

impl Memory {
    /// Whether no connections are to be accepted.
    pub(super) fn is_short(&self) -> bool {
        self.level > MemoryLevel::Normal
    }
}
