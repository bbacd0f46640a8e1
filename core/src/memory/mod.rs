//! The memory under every buffer: refcounted blocks in bounded pools, and the two views of a block.
//!
//! ```text
//!            Block (refcounted, in memory mapped from the kernel)
//!  ┌────────┬───────────┬──────────────┬──────────────────────────┐
//!  │ header │ Slice     │ Slice        │ Tail: not written yet    │
//!  └────────┴───────────┴──────────────┴──────────────────────────┘
//!             shared, immutable           one owner, may be lent to the kernel
//! ```
//!
//! A [`Slice`] sees bytes that were written and will never change. The [`Tail`] is the one owner of what comes
//! behind the last slice. The ranges never overlap, so a slice can be read on one thread while the kernel fills
//! the tail of the same block. When the last slice and the tail are gone, on whichever thread that happens, the
//! block goes back to the [`Pool`] it came from.

mod block;
mod budget;
mod config;
mod foreign;
mod keeper;
mod lately;
#[cfg(not(loom))]
mod machine;
mod mapping;
mod pages;
mod pool;
mod size_class;
mod slice;
mod source;
mod store;
mod tail;

pub use budget::MemoryLevel;
pub(crate) use budget::Usage;
pub use config::PoolConfig;
pub use pool::Pool;
pub use slice::Slice;
pub use source::BlockSource;
pub use store::PoolStats;
pub use tail::Tail;
