//! The buffers that the kernel receives into by itself: blocks in a ring that both sides map.
//!
//! Nobody's connection owns a buffer until bytes have come. The kernel takes the next buffer of the ring when there is
//! something to receive; its completion says which one, and how much. Where the kernel can
//! (`IOU_PBUF_RING_INC`), a buffer is used up piece by piece, by one message after another.

use std::fmt;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicU16, Ordering};

use duopoll_core::{Pool, Slice, Tail};
use io_uring::types::BufRingEntry;

use crate::ring::Ring;
use crate::sys::Mapping;

/// The number by which operations name the ring of buffers.
pub(crate) const GROUP: u16 = 0;

/// Places in the ring.
const ENTRIES: u16 = 256;
/// A buffer is used up piece by piece (`IOU_PBUF_RING_INC`).
const INCREMENTAL: u16 = 2;

/// Bytes of a buffer that is used up piece by piece.
const LARGE_BYTES: usize = 64 << 10;
/// Bytes of a buffer that holds one message, or a piece of it.
const SMALL_BYTES: usize = 16 << 10;
/// The buffers take no more than this part of a memory budget.
const BUDGET_PART: usize = 16;
/// Streams that may hold less, in bytes, are received from into memory of their own.
const SHARE_BYTES_MIN: usize = 32 << 10;
/// The least that a buffer is worth while, in bytes.
const LEAST_BYTES: usize = 2 << 10;
/// How many large ones the kernel has at least, and at most.
const LARGE_COUNT: (usize, usize) = (4, 64);
/// How many small ones the kernel has at least, and at most.
const SMALL_COUNT: (usize, usize) = (64, 256);
/// What the buffers may hold together while few receives find none of them, in bytes: what second-level caches hold.
const CACHED_BYTES: usize = 1 << 20;
/// Turns in a row with little use before the kernel gets fewer buffers.
const QUIET_TURNS: u32 = 1024;

pub(crate) struct Buffers {
    pool: Pool,
    ring: Mapping,
    /// What the kernel may write to, by buffer number.
    lent: Vec<Option<Tail>>,
    /// Numbers that are free.
    numbers: Vec<u16>,
    /// Blocks that were used up and that nobody refers to any more; the last one is the warmest.
    spare: Vec<Tail>,
    /// The size of the blocks that the kernel has, and of the spare ones.
    held_bytes: usize,
    /// Where the next buffer goes; counts on for ever.
    end: u16,
    incremental: bool,
    block_bytes: usize,
    /// How many the kernel shall have.
    wanted: usize,
    range: (usize, usize),
    /// Buffers used up in this turn.
    used: usize,
    /// Receives that found none in this turn.
    shortages: usize,
    quiet_turns: u32,
}

impl Buffers {
    /// Registers a ring of buffers with `ring`, and fills it.
    pub(crate) fn new(ring: &Ring, incremental: bool, pool: Pool) -> io::Result<Buffers> {
        let (block_bytes, range) =
            if incremental { (LARGE_BYTES, LARGE_COUNT) } else { (SMALL_BYTES, SMALL_COUNT) };
        let memory = Mapping::new(usize::from(ENTRIES) * size_of::<BufRingEntry>())?;
        let flags = if incremental { INCREMENTAL } else { 0 };
        // SAFETY: the mapping has room for the entries, and lives as long as these buffers, which are dropped after
        // the last operation that uses them, or leaked.
        unsafe { ring.register_buffers(memory.as_ptr().as_ptr() as u64, ENTRIES, GROUP, flags)? };
        let mut buffers = Buffers {
            pool,
            ring: memory,
            lent: (0..ENTRIES).map(|_| None).collect(),
            numbers: (0..ENTRIES).rev().collect(),
            spare: Vec::new(),
            held_bytes: 0,
            end: 0,
            incremental,
            block_bytes,
            wanted: range.0,
            range,
            used: 0,
            shortages: 0,
            quiet_turns: 0,
        };
        buffers.fill();
        Ok(buffers)
    }

    /// Gives the kernel as many buffers as it shall have. Says whether it has any.
    pub(crate) fn fill(&mut self) -> bool {
        let before = self.end;
        let most = self.pool.max_live_bytes() / BUDGET_PART;
        while self.lent_count() < self.wanted && (self.held_bytes < most || self.is_empty()) {
            let block = self.spare.pop().or_else(|| {
                let block = self.allocate()?;
                self.held_bytes += block.capacity();
                Some(block)
            });
            let (Some(block), Some(&number)) = (block, self.numbers.last()) else { break };
            self.numbers.pop();
            self.write_entry(number, &block);
            self.lent[usize::from(number)] = Some(block);
        }
        if self.end != before {
            // SAFETY: the tail lies within the first entry, is aligned, and is shared with the kernel only, which
            // reads it.
            let tail =
                unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries()).cast_mut()) };
            // Release: the kernel sees the entries when it sees their number.
            tail.store(self.end, Ordering::Release);
        }
        !self.is_empty()
    }

    /// A block of the usual size, or a smaller one while the kernel has none, if memory is short.
    fn allocate(&self) -> Option<Tail> {
        let least =
            if self.is_empty() { LEAST_BYTES } else { LEAST_BYTES.max(self.block_bytes / 16) };
        // Not more than one connection may hold.
        let most = self.pool.share_bytes().next_power_of_two().clamp(LEAST_BYTES, self.block_bytes);
        let sizes = std::iter::successors(Some(most), |bytes| Some(bytes / 2));
        sizes.take_while(|&bytes| bytes >= least).find_map(|bytes| self.pool.allocate(bytes).ok())
    }

    /// Whether the kernel has none.
    pub(crate) fn is_empty(&self) -> bool {
        self.lent_count() == 0
    }

    /// Whether receives had better bring memory of their own: the kernel has no buffers, or memory is so short that a stream may not
    /// hold what it would be given before it could be stopped.
    pub(crate) fn are_scarce(&self) -> bool {
        self.is_empty() || self.pool.share_bytes() < SHARE_BYTES_MIN
    }

    fn lent_count(&self) -> usize {
        usize::from(ENTRIES) - self.numbers.len()
    }

    fn entries(&self) -> *mut BufRingEntry {
        self.ring.as_ptr().cast().as_ptr()
    }

    fn write_entry(&mut self, number: u16, block: &Tail) {
        let len = u32::try_from(block.remaining()).unwrap_or(u32::MAX);
        #[cfg(duopoll_faults)]
        let len = shortened(block, len);
        let place = usize::from(self.end % ENTRIES);
        self.end = self.end.wrapping_add(1);
        // SAFETY: one of the entries of the mapping, which the kernel does not read before the tail says so. The
        // ring's tail, which lies within the first one, is left alone.
        let entry = unsafe { &mut *self.entries().add(place) };
        entry.set_addr(block.as_ptr().as_ptr() as u64);
        entry.set_len(len);
        entry.set_bid(number);
    }

    /// The first `n` bytes of what remains of a buffer, which the kernel has written. `more`: it goes on writing behind
    /// them. None for a number that the kernel was not given.
    ///
    /// # Safety
    /// A completion has said so.
    pub(crate) unsafe fn take(&mut self, number: u16, n: usize, more: bool) -> Option<Taken<'_>> {
        let tail = self.lent.get_mut(usize::from(number))?.as_mut()?;
        if n > tail.remaining() {
            return None;
        }
        let keeps = more && self.incremental;
        Some(Taken { buffers: self, number, n, keeps })
    }

    fn tail(&mut self, number: u16) -> &mut Tail {
        match &mut self.lent[usize::from(number)] {
            Some(tail) => tail,
            None => unreachable!("looked at before"),
        }
    }

    /// The kernel is done with a buffer.
    fn retire(&mut self, number: u16) {
        if let Some(mut tail) = self.lent[usize::from(number)].take() {
            self.numbers.push(number);
            self.used += 1;
            if self.spare.len() < self.wanted && tail.rewind() {
                self.spare.push(tail);
            } else {
                self.held_bytes -= tail.capacity();
            }
        }
    }

    /// For tests: gives the kernel so many from now on. Returns how many it was.
    #[cfg(test)]
    pub(crate) fn want(&mut self, wanted: usize) -> usize {
        mem::replace(&mut self.wanted, wanted)
    }

    /// A receive found none.
    pub(crate) fn ran_out(&mut self) {
        self.shortages += 1;
    }

    /// A turn is over.
    pub(crate) fn end_turn(&mut self) {
        let shortages = mem::take(&mut self.shortages);
        let used = mem::take(&mut self.used);
        if shortages > 0 {
            self.wanted = grown(self.wanted, shortages, self.block_bytes).min(self.range.1);
        }
        if shortages > 0 || used * 4 >= self.wanted {
            self.quiet_turns = 0;
            return;
        }
        self.quiet_turns += 1;
        if self.quiet_turns == QUIET_TURNS {
            self.quiet_turns = 0;
            self.wanted = (self.wanted / 2).max(self.range.0);
            let surplus = self.spare.drain(self.wanted.min(self.spare.len())..);
            self.held_bytes -= surplus.map(|tail| tail.capacity()).sum::<usize>();
        }
    }
}

/// How many buffers the kernel shall have, after so many receives have found none in one turn. It walks through all of them:
/// for one connection that receives much, more than the cache holds cost more than to receive in several turns.
fn grown(wanted: usize, shortages: usize, block_bytes: usize) -> usize {
    let most = shortages.max(CACHED_BYTES / block_bytes);
    wanted.max(most.min(wanted * 2))
}

/// What a test leaves of a buffer.
#[cfg(duopoll_faults)]
fn shortened(block: &Tail, len: u32) -> u32 {
    let mut vector =
        [libc::iovec { iov_base: block.as_ptr().as_ptr().cast(), iov_len: len as usize }];
    duopoll_core::faults::shorten_inputs(&mut vector);
    vector[0].iov_len as u32
}

/// Bytes that the kernel has put into a buffer. When dropped they are gone from it.
pub(crate) struct Taken<'a> {
    buffers: &'a mut Buffers,
    number: u16,
    n: usize,
    /// The kernel writes behind them.
    keeps: bool,
}

impl Taken<'_> {
    /// The bytes, to be copied.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        let start = self.buffers.tail(self.number).as_ptr();
        // SAFETY: the kernel has written them, and writes only behind them.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.n) }
    }

    /// The bytes, to be kept.
    pub(crate) fn into_slice(mut self) -> Slice {
        let n = mem::take(&mut self.n);
        // SAFETY: the kernel has written them, and writes only behind them.
        unsafe { self.buffers.tail(self.number).commit(n) }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.buffers.tail(self.number).skip(self.n);
        if !self.keeps {
            self.buffers.retire(self.number);
        }
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers")
            .field("incremental", &self.incremental)
            .field("block_bytes", &self.block_bytes)
            .field("lent", &self.lent_count())
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_buffers_as_find_use() {
        let after = |turns, shortages, block_bytes| {
            (0..turns).fold(LARGE_COUNT.0, |wanted, _| grown(wanted, shortages, block_bytes))
        };
        // One connection that receives much: 1 MiB.
        assert_eq!([1, 2, 3, 9].map(|turns| after(turns, 1, 64 << 10)), [8, 16, 16, 16]);
        // Many at once: one each.
        assert_eq!([3, 4, 9].map(|turns| after(turns, 40, 64 << 10)), [32, 40, 40]);
        // Never fewer than before.
        assert_eq!(grown(64, 1, 64 << 10), 64);
    }
}
