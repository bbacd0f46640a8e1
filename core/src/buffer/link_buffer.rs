//! The buffer itself. What it does at either end is in files of their own.

use std::fmt;

use super::chain::Chain;
use super::recv::RecvBuffer;
use crate::memory::{Pool, Tail};

/// A chained, pooled, zero-copy byte queue.
///
/// ```text
///   read end                                                          write end
///      │                                                                  │
///      ▼          flushed: readable            ▼ flush boundary           ▼
///   ┌───────┐   ┌─────────────┐   ┌──────────────────┐   ┌───────┐   ┌─────────┐
///   │ Slice │──▶│ Slice       │──▶│ Slice  ┊  Slice  │──▶│ Bytes │──▶│ Slice   │┄ tail ┄┄┐
///   └───┬───┘   └──────┬──────┘   └────────┬─────────┘   └───┬───┘   └────┬────┘         ┊
///    block A        block A             block B         caller's own    block C ◀┄┄┄┄┄┄┄┄┄┘
///                                                          memory
/// ```
///
/// # Ownership
/// - The buffer is plain data with one owner: every operation takes `&mut self` or `&self`, there is no lock and no
///   atomic but the reference count of a block.
/// - What comes out ([`next`](LinkBuffer::next), [`until`](LinkBuffer::until)) is an owned [`Slice`](crate::Slice). It stays
///   valid, with the same bytes, whatever happens to the buffer and on whichever thread. There is no release call;
///   dropping the last slice of a block recycles it.
/// - [`peek`](LinkBuffer::peek) borrows from the buffer, so the compiler ends it before the buffer changes.
/// - What goes in is copied by [`write`](LinkBuffer::write), and never copied by [`push`](LinkBuffer::push), which
///   takes ownership. The type of the argument says which.
///
/// # Writing and flushing
/// Written bytes are not readable until [`flush`](LinkBuffer::flush): until then they are *reserved*, can be
/// dropped again by [`truncate_reserved`](LinkBuffer::truncate_reserved), and pieces can be
/// [inserted](LinkBuffer::insert) among them.
///
/// # Memory
/// Copied and received bytes lie in blocks of the [`Pool`], the first of
/// [`node_bytes`](crate::PoolConfig::node_bytes), later ones larger the more the buffer holds or a read brings. An
/// empty buffer may hold on to one block for what comes next; [`release_memory`](LinkBuffer::release_memory) gives
/// it up. A block whose bytes are all gone is written anew.
///
/// # Complexity
/// | operation | cost |
/// |---|---|
/// | `len`, `push`, `append`, `adopt`, `flush`, `reserve`, `commit` | O(1), no copy |
/// | `next`, `peek` within one slice | O(1), no copy |
/// | `next`, `peek` across slices | O(n), one copy; further peeks copy only what they add |
/// | `skip`, `split_to` | O(slices passed), no copy |
/// | `insert`, `truncate_reserved` | O(slices in the buffer), no copy |
/// | `lend_writable`, `commit_lent` | O(1), no copy |
/// | `lend_readable` | O(vectors), no copy |
/// | `write`, `read_bytes`, `read_string`, `copy_to` | O(n), one copy |
/// | `find`, `find_pattern`, `until` | O(bytes searched), no copy |
///
/// In steady state none of them allocates: blocks come from the pool, and nodes from a list of the thread.
///
/// # Errors
/// An operation that fails returns an [`Error`](crate::Error) and leaves the buffer as it was. Only the trait implementations of
/// `bytes::Buf` and `bytes::BufMut` panic where their contracts say so.
///
/// ```
/// # extern crate duopoll_core as duopoll;
/// use duopoll::LinkBuffer;
///
/// let mut buffer = LinkBuffer::new();
/// buffer.write(b"HELO ")?;            // copied
/// buffer.push("example.org\r\n");     // not copied
/// buffer.flush();
///
/// let verb = buffer.next(4)?;         // owned, not copied
/// buffer.skip(1)?;
/// let line = buffer.until(b'\n').expect("a whole line");
/// assert_eq!(verb, b"HELO");
/// assert_eq!(line, b"example.org\r\n");
/// # Ok::<(), duopoll::Error>(())
/// ```
pub struct LinkBuffer {
    /// Readable bytes, then reserved ones.
    pub(super) chain: Chain,
    /// Bytes at the end of the chain that were written and not flushed.
    pub(super) unflushed: usize,
    /// What the last `reserve` promised.
    pub(super) promised: usize,
    /// The write end, and where an engine receives.
    pub(super) recv: RecvBuffer,
    /// The rest of the block that the last copying peek made.
    pub(super) peeked: Option<Tail>,
    pub(super) pool: Pool,
}

impl LinkBuffer {
    /// An empty buffer on the pool of the poller that runs on this thread, or else on the [global](Pool::global) one. Allocates nothing.
    pub fn new() -> LinkBuffer {
        #[cfg(not(loom))]
        let pool = crate::thread::Blocks::pool();
        #[cfg(loom)]
        let pool = Pool::new(crate::memory::PoolConfig::default());
        LinkBuffer::with_pool(pool)
    }

    /// An empty buffer that takes its blocks from `pool`. Allocates nothing.
    pub fn with_pool(pool: Pool) -> LinkBuffer {
        LinkBuffer {
            chain: Chain::new(),
            unflushed: 0,
            promised: 0,
            recv: RecvBuffer::starting_with(pool.config().node_bytes),
            peeked: None,
            pool,
        }
    }

    /// The pool that blocks come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Drops every byte, readable or reserved, and the memory held for more.
    pub fn clear(&mut self) {
        self.chain = Chain::new();
        self.unflushed = 0;
        self.promised = 0;
        self.release_memory();
    }

    /// Gives up the memory that is held for more bytes. The bytes in the buffer stay.
    pub fn release_memory(&mut self) {
        self.promised = 0;
        *self.recv.tail_mut() = None;
        self.recv.take_unused();
        self.peeked = None;
    }
}

impl Default for LinkBuffer {
    fn default() -> LinkBuffer {
        LinkBuffer::new()
    }
}

impl fmt::Debug for LinkBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkBuffer")
            .field("len", &self.len())
            .field("reserved_len", &self.reserved_len())
            .field("chain", &self.chain)
            .finish()
    }
}
