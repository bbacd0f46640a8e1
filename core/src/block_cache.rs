//! The blocks a poller keeps at hand.
//!
//! A connection needs a block only while bytes are on their way. When its turn is over the block comes back here,
//! and the next connection gets it while its lines are in the cache: no lock, no atomic, no memory per connection.

use std::collections::VecDeque;

use libc::iovec;

use crate::buffer::{Chain, vector};
use crate::error::Error;
use crate::memory::{BlockSource, Pool, Tail};

/// Blocks kept at hand, at most.
const BLOCKS_MAX: usize = 64;
/// The largest block that is kept, in bytes; with `BLOCKS_MAX`, at most 4 MiB in all.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// The blocks that small messages share, in bytes. One of them that is kept keeps the whole.
const SHARED_BLOCK_BYTES: usize = 8 << 10;
/// What is lent of them for one receive, in bytes: not less than the first, and not more than the last.
const LENT_BYTES: (usize, usize) = (2 << 10, 4 << 10);
/// Full blocks of small messages that are looked at again, at most.
const FULL_MAX: usize = 32;
/// How many of the blocks used last are looked at for one that fits.
const LOOKED_AT: usize = 4;

#[derive(Debug)]
pub(crate) struct BlockCache {
    spare: Vec<Tail>,
    /// The block that small messages are received or copied into, one connection's after another's.
    shared: Option<Tail>,
    /// Those that were full while somebody still referred to them, the oldest first.
    full: VecDeque<Tail>,
    /// The block that replies are being written into, one connection's after another's.
    written: Option<Tail>,
    /// Where blocks come from; None: from the global pool.
    pool: Option<Pool>,
}

/// A block that replies are written into is left for the next writer while so many bytes remain.
const WRITTEN_BYTES_MIN: usize = 256;

impl BlockCache {
    pub(crate) const fn new() -> BlockCache {
        BlockCache {
            spare: Vec::new(),
            shared: None,
            full: VecDeque::new(),
            written: None,
            pool: None,
        }
    }

    /// Takes blocks from this pool from now on.
    pub(crate) fn use_pool(&mut self, pool: Pool) {
        self.pool = Some(pool);
    }

    pub(crate) fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap_or_else(|| Pool::global())
    }

    /// Lends room for a small message, until [`commit`](BlockCache::commit). None if there is no memory.
    pub(crate) fn lend(&mut self) -> Option<iovec> {
        let mut lent = vector(self.shared(LENT_BYTES.0)?);
        lent.iov_len = lent.iov_len.min(LENT_BYTES.1);
        Some(lent)
    }

    /// Moves the first `n` bytes of what was lent to the end of `chain`.
    ///
    /// # Safety
    /// They are initialised, and nobody writes to them any more. Nothing else was asked of the cache since they were lent.
    pub(crate) unsafe fn commit(&mut self, n: usize, chain: &mut Chain) {
        if let Some(tail) = &mut self.shared {
            // SAFETY: promised by the caller.
            unsafe { chain.push_committed(tail, n) };
        }
    }

    /// Copies a small message to the end of `chain`. False if there is no memory.
    pub(crate) fn copy_in(&mut self, bytes: &[u8], chain: &mut Chain) -> bool {
        let Some(tail) = self.shared(bytes.len()) else { return false };
        let n = tail.fill(bytes);
        // SAFETY: `fill` initialised n bytes.
        unsafe { chain.push_committed(tail, n) };
        true
    }

    /// The block that small messages share, with room for so many bytes.
    #[inline]
    fn shared(&mut self, min_bytes: usize) -> Option<&mut Tail> {
        if self.shared.as_ref().is_none_or(|tail| tail.remaining() < min_bytes) {
            self.renew_shared(min_bytes)?;
        }
        self.shared.as_mut()
    }

    /// A full one is used again when nobody refers to it any more: its lines are in the cache.
    #[cold]
    fn renew_shared(&mut self, min_bytes: usize) -> Option<()> {
        let is_free = |tail: &mut Tail| tail.capacity() >= min_bytes && tail.rewind();
        if self.shared.as_mut().is_some_and(is_free) {
            return Some(());
        }
        let block = if self.full.front_mut().is_some_and(is_free) {
            self.full.pop_front()?
        } else {
            // Another one is looked at next time.
            let oldest = self.full.pop_front();
            self.full.extend(oldest);
            self.block(min_bytes.max(SHARED_BLOCK_BYTES)).ok()?
        };
        if let Some(full) = self.shared.replace(block) {
            if self.full.len() == FULL_MAX {
                self.full.pop_front();
            }
            self.full.push_back(full);
        }
        Some(())
    }

    /// A turn is over: what comes next goes where this one's messages were, if they are all gone.
    pub(crate) fn end_turn(&mut self) {
        if let Some(tail) = &mut self.shared {
            tail.rewind();
        }
    }

    pub(crate) fn take_written(&mut self) -> Option<Tail> {
        let mut tail = self.written.take()?;
        tail.rewind();
        (tail.remaining() >= WRITTEN_BYTES_MIN).then_some(tail)
    }

    pub(crate) fn put_written(&mut self, tail: Tail) {
        if tail.capacity() <= BLOCK_BYTES_MAX {
            self.written = Some(tail);
        }
    }

    /// Keeps the block, if nobody else refers to it.
    pub(crate) fn put(&mut self, mut tail: Tail) {
        let room = self.spare.len() < BLOCKS_MAX && tail.capacity() <= BLOCK_BYTES_MAX;
        if room && tail.rewind() {
            self.spare.push(tail);
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = BlockCache::new();
    }
}

impl BlockSource for BlockCache {
    fn block(&mut self, min_bytes: usize) -> Result<Tail, Error> {
        let fits = |tail: &Tail| tail.remaining() >= min_bytes && tail.capacity() / 4 <= min_bytes;
        let looked_at = self.spare.len().saturating_sub(LOOKED_AT);
        if let Some(at) = self.spare[looked_at..].iter().rposition(fits) {
            return Ok(self.spare.swap_remove(looked_at + at));
        }
        self.pool().allocate(min_bytes)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::Slice;

    /// Receives into what is lent.
    fn receive(cache: &mut BlockCache, bytes: &[u8]) -> Slice {
        let lent = cache.lend().unwrap();
        assert!((LENT_BYTES.0..=LENT_BYTES.1).contains(&lent.iov_len));
        assert!(bytes.len() <= lent.iov_len);
        let mut chain = Chain::new();
        // SAFETY: the room is lent, and has as many bytes.
        unsafe {
            lent.iov_base.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            cache.commit(bytes.len(), &mut chain);
        }
        chain.pop().unwrap()
    }

    fn copy(cache: &mut BlockCache, bytes: &[u8]) -> Slice {
        let mut chain = Chain::new();
        assert!(cache.copy_in(bytes, &mut chain));
        chain.pop().unwrap()
    }

    #[test]
    fn small_messages_lie_side_by_side() {
        let mut cache = BlockCache::new();
        let (a, b) = (receive(&mut cache, b"one"), copy(&mut cache, b"two"));
        let c = receive(&mut cache, b"three");
        assert_eq!((&a[..], &b[..], &c[..]), (&b"one"[..], &b"two"[..], &b"three"[..]));
        assert_eq!(a.as_ptr_range().end, b.as_ptr());
        assert_eq!(b.as_ptr_range().end, c.as_ptr());
    }

    #[test]
    fn a_turn_begins_where_the_last_one_did() {
        let mut cache = BlockCache::new();
        let first = receive(&mut cache, b"gone").as_ptr();
        cache.end_turn();
        let kept = receive(&mut cache, b"kept");
        assert_eq!(kept.as_ptr(), first);
        cache.end_turn();
        assert_ne!(receive(&mut cache, b"next").as_ptr(), first);
        assert_eq!(kept, b"kept");
    }

    #[test]
    fn a_full_block_is_used_again_when_all_of_it_is_gone() {
        let mut cache = BlockCache::new();
        let fill = |cache: &mut BlockCache| -> Vec<Slice> {
            let message = [7; SHARED_BLOCK_BYTES / 8];
            (0..7).map(|_| receive(cache, &message)).collect()
        };
        let first = fill(&mut cache);
        let second = fill(&mut cache);
        let in_block = |slice: &Slice| slice.as_ptr() as usize / SHARED_BLOCK_BYTES;
        assert_ne!(in_block(&first[0]), in_block(&second[0]));
        let address = first[0].as_ptr();
        drop(first);
        let third = fill(&mut cache);
        assert_eq!(third[0].as_ptr(), address);
        // And one that is kept does not keep the others from it.
        drop(third);
        let fourth = fill(&mut cache);
        assert_eq!(fourth[0].as_ptr(), address);
        assert!(second.iter().all(|slice| slice.iter().all(|byte| *byte == 7)));
    }
}
