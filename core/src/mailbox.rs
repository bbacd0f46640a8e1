//! How connections reach their poller.
//!
//! A connection on its poller's own thread leaves a command in a thread-local list: no lock, no atomic. From any
//! other thread it goes through a locked list and, if the poller sleeps, one wake-up. A poller that is awake looks
//! at the list before it sleeps, so a busy one is never woken by a system call.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use libc::iovec;

use crate::buffer::{BlockSource, Chain};
use crate::error::Error;
use crate::memory::{Pool, Tail};
use crate::poll::Notify;
use crate::stash::Stash;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, Ordering, barrier, lock};
use crate::timer::Tick;
use crate::token::Token;

/// What a connection asks of its poller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// There is something to send, at the end of the turn, with what others have to send.
    Send(Token),
    /// There is much to send, which had better go while it is in the cache.
    SendNow(Token),
    /// There is room to receive again.
    Receive(Token),
    /// Nothing is to be received for a while.
    Pause(Token),
    /// Receive again.
    Resume(Token),
    /// Both halves of the connection are gone, or it was closed.
    Close(Token),
    /// The connection is to be reset.
    Abort(Token),
    /// The socket is to live on without its poller.
    Detach(Token),
    /// A deadline is earlier than the timer that is set.
    Arm(Token),
}

/// What time it is.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, in ticks since the clock's beginning, rounded down.
    fn now(&self) -> Tick;

    /// An instant in ticks, rounded up, so that nothing is due too early; 0 if it was before the beginning.
    fn tick_of(&self, instant: Instant) -> Tick;
}

/// The poller is awake, and will look at the list before it sleeps.
const AWAKE: usize = 0;
/// The poller sleeps, or is about to.
const SLEEPING: usize = 1;
/// Something was put into the list since the poller last looked.
const NOTIFIED: usize = 2;

/// The way to one poller.
pub struct Mailbox {
    commands: Mutex<Vec<Command>>,
    state: AtomicUsize,
    notify: Arc<dyn Notify>,
    clock: Arc<dyn Clock>,
    /// A thread is the poller's.
    entered: AtomicBool,
    /// Whether the state of connections may be confined to the poller's thread.
    confines: bool,
    /// Why the engine cannot send without a copy, if it cannot.
    #[cfg(feature = "zerocopy")]
    zerocopy_refusal: std::sync::OnceLock<String>,
}

/// What the poller that runs on this thread keeps within reach of its connections.
struct Local {
    commands: RefCell<Vec<Command>>,
    /// One of the commands had better be done soon.
    urgent: Cell<bool>,
    stash: RefCell<Stash>,
}

thread_local! {
    /// The mailbox of the poller that runs on this thread, by address; null on other threads. By itself, since it is asked
    /// for most, and has no destructor to be looked out for.
    static POLLER: Cell<*const Mailbox> = const { Cell::new(std::ptr::null()) };

    static LOCAL: Local = const {
        Local {
            commands: RefCell::new(Vec::new()),
            urgent: Cell::new(false),
            stash: RefCell::new(Stash::new()),
        }
    };
}

impl Mailbox {
    /// A mailbox for the poller that `notify` wakes, and that lives by `clock`.
    pub fn new(notify: Arc<dyn Notify>, clock: Arc<dyn Clock>) -> Mailbox {
        let commands = Mutex::new(Vec::new());
        Mailbox {
            commands,
            state: AtomicUsize::new(AWAKE),
            notify,
            clock,
            entered: AtomicBool::new(false),
            confines: Mailbox::prepare(),
            #[cfg(feature = "zerocopy")]
            zerocopy_refusal: std::sync::OnceLock::new(),
        }
    }

    /// The engine cannot send without a copy.
    #[cfg(feature = "zerocopy")]
    pub fn refuse_zerocopy(&self, reason: String) {
        let _ = self.zerocopy_refusal.set(reason);
    }

    /// Whether the engine can send without a copy.
    ///
    /// # Errors
    /// [`Unsupported`](std::io::ErrorKind::Unsupported), and why.
    #[cfg(feature = "zerocopy")]
    pub fn check_zerocopy(&self) -> std::io::Result<()> {
        match self.zerocopy_refusal.get() {
            Some(reason) => {
                Err(std::io::Error::new(std::io::ErrorKind::Unsupported, reason.clone()))
            }
            None => Ok(()),
        }
    }

    /// Asks the kernel for what pollers need, which takes microseconds while the process has one thread, and some 10
    /// milliseconds, once, when it has more. Says whether it is there: nothing fails without.
    #[doc(hidden)]
    pub fn prepare() -> bool {
        barrier::is_available()
    }

    /// Whether the state of connections may be confined to the poller's thread.
    pub(crate) fn confines(&self) -> bool {
        self.confines
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Makes this thread the poller's, until the returned guard is dropped.
    ///
    /// # Panics
    /// If there is such a guard already.
    pub fn enter(self: &Arc<Self>) -> Entered {
        // Acquire: what was done on the thread that was the poller's before is seen on this one.
        assert!(!self.entered.swap(true, Ordering::Acquire), "a poller has one thread at a time");
        let previous = POLLER.replace(Arc::as_ptr(self));
        Entered { previous, mailbox: self.clone(), stays: PhantomData }
    }

    /// Whether this is the poller's own thread.
    #[inline]
    pub fn is_local(&self) -> bool {
        std::ptr::eq(POLLER.get(), self)
    }

    /// Leaves a command. Never blocks for longer than another thread takes to leave one.
    pub fn post(&self, command: Command) {
        let left = self.is_local()
            && LOCAL
                .try_with(|local| {
                    local.commands.borrow_mut().push(command);
                    if matches!(command, Command::SendNow(_)) {
                        local.urgent.set(true);
                    }
                })
                .is_ok();
        if !left {
            lock(&self.commands).push(command);
            self.wake();
        }
    }

    /// Makes the poller take another turn. For those who have left something for it elsewhere.
    pub fn wake(&self) {
        // AcqRel: what was left before is seen by the poller that reads NOTIFIED.
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == SLEEPING {
            self.notify.notify();
        }
    }

    /// The poller is about to sleep. False if something was left since [`take`](Mailbox::take): then it must not.
    pub fn sleep(&self) -> bool {
        if LOCAL.with(|local| !local.commands.borrow().is_empty()) {
            return false;
        }
        self.state.compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The poller is awake. Moves what was left on this thread, and from others, to the end of `commands`. Says
    /// whether another thread has called.
    pub fn take(&self, commands: &mut Vec<Command>) -> bool {
        LOCAL.with(|local| {
            local.urgent.set(false);
            commands.append(&mut local.commands.borrow_mut());
        });
        if self.state.load(Ordering::Acquire) == AWAKE {
            return false;
        }
        let notified = self.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED;
        if notified {
            commands.append(&mut lock(&self.commands));
        }
        notified
    }

    /// Whether something was left on this thread that had better be done before the turn ends.
    pub fn is_urgent(&self) -> bool {
        LOCAL.with(|local| local.urgent.get())
    }
}

/// Whether this is the thread of a poller, which must not block.
pub fn on_poller_thread() -> bool {
    !POLLER.get().is_null()
}

/// The blocks at hand on this thread: of the poller that runs here, else of the global pool.
pub(crate) struct LocalBlocks;

impl LocalBlocks {
    fn with<T>(f: impl FnOnce(&mut Stash) -> T) -> Option<T> {
        if !on_poller_thread() {
            return None;
        }
        LOCAL.try_with(|local| f(&mut local.stash.borrow_mut())).ok()
    }

    /// Gives a block back that was received into.
    pub(crate) fn put(tail: Tail) {
        LocalBlocks::with(|stash| stash.put(tail));
    }

    /// Lends room for a small message, in a block that many of them share. None if there is no memory, or this is not the
    /// thread of a poller.
    pub(crate) fn lend() -> Option<iovec> {
        LocalBlocks::with(Stash::lend).flatten()
    }

    /// Moves the first `n` bytes of what was lent to the end of `chain`.
    ///
    /// # Safety
    /// They are initialised, and nobody writes to them any more. Nothing else was asked of this thread's blocks since they
    /// were lent.
    pub(crate) unsafe fn commit(n: usize, chain: &mut Chain) {
        // SAFETY: promised by the caller.
        LocalBlocks::with(|stash| unsafe { stash.commit(n, chain) });
    }

    /// A turn is over.
    pub(crate) fn end_turn() {
        LocalBlocks::with(Stash::end_turn);
    }

    /// Copies a small message to the end of `chain`, into a block that many of them share. False if there is no memory.
    pub(crate) fn copy_in(bytes: &[u8], chain: &mut Chain) -> bool {
        LocalBlocks::with(|stash| stash.copy_in(bytes, chain)).unwrap_or(false)
    }

    /// Takes the block that the last writer on this thread did not fill.
    pub(crate) fn take_written() -> Option<Tail> {
        LocalBlocks::with(Stash::take_written).flatten()
    }

    /// Leaves a block for the next writer on this thread.
    pub(crate) fn put_written(tail: Tail) {
        LocalBlocks::with(|stash| stash.put_written(tail));
    }
}

impl BlockSource for LocalBlocks {
    fn block(&mut self, min_bytes: usize) -> Result<Tail, Error> {
        LocalBlocks::with(|stash| stash.block(min_bytes))
            .unwrap_or_else(|| Pool::global().allocate(min_bytes))
    }

    fn put_back(&mut self, block: Tail) {
        LocalBlocks::put(block);
    }
}

/// While it lives, this thread is a poller's.
#[derive(Debug)]
pub struct Entered {
    previous: *const Mailbox,
    /// Keeps the address from being taken by another mailbox meanwhile.
    mailbox: Arc<Mailbox>,
    /// Not to another thread.
    stays: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        POLLER.set(self.previous);
        // Release: see `enter`.
        self.mailbox.entered.store(false, Ordering::Release);
        let _ = LOCAL.try_with(|local| {
            local.stash.borrow_mut().clear();
            local.commands.borrow_mut().clear();
        });
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("notify", &self.notify).finish_non_exhaustive()
    }
}
