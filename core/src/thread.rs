//! What the poller that runs on this thread keeps within reach of its connections: no lock, no atomic.

use std::cell::{Cell, RefCell};
use std::ptr;

use libc::iovec;

use crate::block_cache::BlockCache;
use crate::buffer::Chain;
use crate::command::Command;
use crate::error::Error;
use crate::memory::{BlockSource, Pool, Tail};
use crate::timers;

struct Local {
    commands: RefCell<Vec<Command>>,
    /// One of the commands had better be done soon.
    urgent: Cell<bool>,
    blocks: RefCell<BlockCache>,
    /// Turns that are over.
    turns: Cell<u32>,
    direct: Cell<DirectSends>,
}

/// What was sent past the engine on the thread of a poller.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectSends {
    /// Calls of send(2).
    pub calls: u64,
    /// Of these, those that were taken in part or not at all.
    pub short: u64,
    /// Bytes taken.
    pub bytes: u64,
}

thread_local! {
    /// The poller that runs on this thread, by an address of its own; null on other threads. By itself, since it is asked
    /// for most, and has no destructor to be looked out for.
    static POLLER: Cell<*const ()> = const { Cell::new(ptr::null()) };

    static LOCAL: Local = const {
        Local {
            commands: RefCell::new(Vec::new()),
            urgent: Cell::new(false),
            blocks: RefCell::new(BlockCache::new()),
            turns: Cell::new(0),
            direct: Cell::new(DirectSends { calls: 0, short: 0, bytes: 0 }),
        }
    };
}

/// Whether this is the thread of a poller, which must not block.
pub fn on_poller_thread() -> bool {
    !POLLER.get().is_null()
}

/// Whether this is the thread of that poller.
#[inline]
pub(crate) fn is_of(poller: *const ()) -> bool {
    ptr::eq(POLLER.get(), poller)
}

/// Makes this the thread of that poller.
///
/// # Panics
/// If it is a poller's already.
pub(crate) fn enter(poller: *const (), pool: Option<Pool>) {
    assert!(!on_poller_thread(), "this thread runs a poller already");
    POLLER.set(poller);
    if let Some(pool) = pool {
        Blocks::with(|cache| cache.use_pool(pool));
    }
}

/// Makes this an ordinary thread again.
pub(crate) fn leave() {
    POLLER.set(ptr::null());
    timers::clear();
    let _ = LOCAL.try_with(|local| {
        local.blocks.borrow_mut().clear();
        local.commands.borrow_mut().clear();
        local.urgent.set(false);
        local.direct.take();
    });
}

/// Leaves a command for the poller of this thread. False if the thread is coming to its end.
#[inline]
pub(crate) fn post(command: Command) -> bool {
    let posted = LOCAL.try_with(|local| {
        local.commands.borrow_mut().push(command);
        if matches!(command, Command::SendNow(_)) {
            local.urgent.set(true);
        }
    });
    posted.is_ok()
}

/// Moves what was left to the end of `commands`.
pub(crate) fn take_commands(commands: &mut Vec<Command>) {
    LOCAL.with(|local| {
        local.urgent.set(false);
        commands.append(&mut local.commands.borrow_mut());
    });
}

pub(crate) fn has_commands() -> bool {
    LOCAL.with(|local| !local.commands.borrow().is_empty())
}

/// Whether something was left that had better be done before the turn ends.
pub(crate) fn is_urgent() -> bool {
    LOCAL.with(|local| local.urgent.get())
}

/// The number of the turn that the poller of this thread is in.
pub(crate) fn turn() -> u32 {
    LOCAL.with(|local| local.turns.get())
}

/// Counts a send past the engine; `short`: not all was taken.
pub(crate) fn count_direct(bytes: usize, short: bool) {
    LOCAL.with(|local| {
        let DirectSends { calls, short: shorts, bytes: sent } = local.direct.get();
        let (short, bytes) = (shorts + u64::from(short), sent + bytes as u64);
        local.direct.set(DirectSends { calls: calls + 1, short, bytes });
    });
}

/// What was sent past the engine on this thread, since it is a poller's.
pub fn direct_sends() -> DirectSends {
    LOCAL.with(|local| local.direct.get())
}

/// The blocks at hand on this thread: those of the poller that runs here, else of the global pool.
pub(crate) struct Blocks;

impl Blocks {
    fn with<T>(f: impl FnOnce(&mut BlockCache) -> T) -> Option<T> {
        if !on_poller_thread() {
            return None;
        }
        LOCAL.try_with(|local| f(&mut local.blocks.borrow_mut())).ok()
    }

    /// The pool that they come from.
    #[cfg(not(loom))]
    pub(crate) fn pool() -> Pool {
        Blocks::with(|cache| cache.pool().clone()).unwrap_or_else(|| Pool::global().clone())
    }

    /// Gives a block back that was received into.
    pub(crate) fn put(tail: Tail) {
        Blocks::with(|cache| cache.put(tail));
    }

    /// Lends room for a small message, in a block that many of them share. None if there is no memory, or this is not the
    /// thread of a poller.
    pub(crate) fn lend() -> Option<iovec> {
        Blocks::with(BlockCache::lend).flatten()
    }

    /// Moves the first `n` bytes of what was lent to the end of `chain`.
    ///
    /// # Safety
    /// They are initialised, and nobody writes to them any more. Nothing else was asked of this thread's blocks since they
    /// were lent.
    pub(crate) unsafe fn commit(n: usize, chain: &mut Chain) {
        // SAFETY: promised by the caller.
        Blocks::with(|cache| unsafe { cache.commit(n, chain) });
    }

    /// A turn is over.
    pub(crate) fn end_turn() {
        LOCAL.with(|local| local.turns.set(local.turns.get().wrapping_add(1)));
        Blocks::with(BlockCache::end_turn);
    }

    /// Copies a small message to the end of `chain`, into a block that many of them share. False if there is no memory.
    pub(crate) fn copy_in(bytes: &[u8], chain: &mut Chain) -> bool {
        Blocks::with(|cache| cache.copy_in(bytes, chain)).unwrap_or(false)
    }

    /// Takes the block that the last writer on this thread did not fill.
    pub(crate) fn take_written() -> Option<Tail> {
        Blocks::with(BlockCache::take_written).flatten()
    }

    /// Leaves a block for the next writer on this thread.
    pub(crate) fn put_written(tail: Tail) {
        Blocks::with(|cache| cache.put_written(tail));
    }
}

impl BlockSource for Blocks {
    fn block(&mut self, min_bytes: usize) -> Result<Tail, Error> {
        Blocks::with(|cache| cache.block(min_bytes))
            .unwrap_or_else(|| Pool::global().allocate(min_bytes))
    }
}
