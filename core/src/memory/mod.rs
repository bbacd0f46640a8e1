//! The memory under every buffer: refcounted blocks in bounded pools, and the two views of a block.
//!
//! ```text
//!            Block (refcounted, in a region mapped from the kernel)
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
mod pool;
mod region;
mod slice;
mod source;
mod tail;

pub use pool::{Pool, PoolConfig, PoolStats};
pub use slice::Slice;
pub use source::BlockSource;
pub use tail::Tail;
