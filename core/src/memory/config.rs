//! The limits of a pool, and the sizes of blocks that follow from them.

/// Powers of two from `2^MIN_SHIFT` on.
const MIN_SHIFT: u32 = 9;
/// Size classes: 512 B to 1 GiB. A larger block belongs to none. A model of the threads has fewer.
pub(super) const CLASSES: usize = if cfg!(loom) { 2 } else { 22 };
const CLASS_BYTES_MIN: usize = 1 << MIN_SHIFT;
const CLASS_BYTES_MAX: usize = CLASS_BYTES_MIN << (CLASSES - 1);

/// Limits of a [`Pool`](crate::Pool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// The smallest block, in bytes; rounded up to a power of two from 512 B to 16 MiB. Default: 1 KiB.
    pub min_block_bytes: usize,
    /// The first block of a [`LinkBuffer`](crate::LinkBuffer) that is written to or received into, in bytes; from
    /// `min_block_bytes` to 1 MiB. Blocks then grow with the traffic. Default: 4 KiB.
    pub node_bytes: usize,
    /// The largest block that waits in the pool, in bytes; at most 1 GiB. Default: 1 MiB. Larger ones are mapped
    /// and unmapped each time.
    pub max_pooled_block_bytes: usize,
    /// The most bytes that wait in the pool for longer than a second. Default: 8 MiB.
    pub max_pooled_bytes: usize,
    /// The most bytes in blocks that are in use: what would be more is refused. Default: no limit. The
    /// [global pool](crate::Pool::global) may have half of the memory that the process may have.
    pub max_live_bytes: usize,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig {
            min_block_bytes: 1 << 10,
            node_bytes: 4 << 10,
            max_pooled_block_bytes: 1 << 20,
            max_pooled_bytes: 8 << 20,
            max_live_bytes: usize::MAX,
        }
    }
}

impl PoolConfig {
    /// Within the limits of the limits.
    pub(super) fn adjusted(self) -> PoolConfig {
        let min_block_bytes =
            self.min_block_bytes.clamp(CLASS_BYTES_MIN, 1 << 24).next_power_of_two();
        PoolConfig {
            min_block_bytes,
            node_bytes: self.node_bytes.clamp(min_block_bytes, min_block_bytes.max(1 << 20)),
            max_pooled_block_bytes: self.max_pooled_block_bytes.min(CLASS_BYTES_MAX),
            max_pooled_bytes: self.max_pooled_bytes,
            max_live_bytes: self.max_live_bytes,
        }
    }

    /// The size class whose blocks hold `bytes`, and their capacity; none if such blocks are mapped one by one. A block's
    /// own capacity gives the class it was taken from.
    pub(super) fn class_of(&self, bytes: usize) -> Option<(usize, usize)> {
        let capacity = bytes.checked_next_power_of_two()?.max(CLASS_BYTES_MIN);
        let class = (capacity.trailing_zeros() - MIN_SHIFT) as usize;
        (capacity <= self.max_pooled_block_bytes).then_some((class, capacity))
    }
}
