//! Who gives empty blocks.

use super::pool::Pool;
use super::tail::Tail;
use crate::error::Error;

/// Gives empty blocks.
pub trait BlockSource {
    /// An empty block of at least `min_bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is none.
    fn block(&mut self, min_bytes: usize) -> Result<Tail, Error>;
}

impl BlockSource for &Pool {
    fn block(&mut self, min_bytes: usize) -> Result<Tail, Error> {
        self.allocate(min_bytes)
    }
}
