//! How connections reach their poller.
//!
//! A connection on its poller's own thread leaves a command in a thread-local list: no lock, no atomic. From any
//! other thread it goes through a locked list and, if the poller sleeps, one wake-up. A poller that is awake looks
//! at the list before it sleeps, so a busy one is never woken by a system call.

use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use crate::clock::Clock;
use crate::command::Command;
use crate::memory::Pool;
use crate::poll::Notify;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, Ordering, lock};
use crate::thread;

/// The poller is awake, and will look at the list before it sleeps.
const AWAKE: usize = 0;
/// The poller sleeps, or is about to.
const SLEEPING: usize = 1;
/// Something was put into the list since the poller last looked.
const NOTIFIED: usize = 2;

/// Pollers that there were.
static NUMBERS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// The way to one poller. In cache lines of its own, two at a time, as processors fetch them: it is written when the poller sleeps.
#[repr(align(128))]
pub struct Mailbox {
    /// None once the poller has ended.
    commands: Mutex<Option<Vec<Command>>>,
    state: AtomicUsize,
    notify: Arc<dyn Notify>,
    clock: Arc<dyn Clock>,
    /// A thread is the poller's.
    entered: AtomicBool,
    /// Of the poller, in this process.
    number: u32,
    /// Where its connections have their blocks from; None: from the global pool.
    pool: Option<Pool>,
    /// What a connection may hold in each direction, in bytes.
    share: AtomicUsize,
    /// Times that one held as much, and was received from no longer.
    stops: AtomicUsize,
    /// Why the engine cannot send without a copy, if it cannot.
    #[cfg(feature = "zerocopy")]
    zerocopy_refusal: std::sync::OnceLock<String>,
}

impl Mailbox {
    /// A mailbox for the poller that `notify` wakes, and that lives by `clock`.
    pub fn new(notify: Arc<dyn Notify>, clock: Arc<dyn Clock>) -> Mailbox {
        Mailbox {
            commands: Mutex::new(Some(Vec::new())),
            state: AtomicUsize::new(AWAKE),
            notify,
            clock,
            entered: AtomicBool::new(false),
            number: NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            pool: None,
            share: AtomicUsize::new(usize::MAX),
            stops: AtomicUsize::new(0),
            #[cfg(feature = "zerocopy")]
            zerocopy_refusal: std::sync::OnceLock::new(),
        }
    }

    /// With blocks of this pool for the connections of the poller.
    pub fn with_pool(self, pool: Pool) -> Mailbox {
        Mailbox { pool: Some(pool), ..self }
    }

    pub(crate) fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap_or_else(|| Pool::global())
    }

    /// What a connection may hold in each direction, in bytes.
    #[inline]
    pub(crate) fn share(&self) -> usize {
        // Relaxed: a number by itself, of a while ago.
        self.share.load(Ordering::Relaxed)
    }

    /// A connection holds its share, and is received from no longer.
    #[cold]
    pub(crate) fn count_stop(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stops(&self) -> usize {
        self.stops.load(Ordering::Relaxed)
    }

    pub(crate) fn set_share(&self, bytes: usize) {
        if self.share() != bytes {
            self.share.store(bytes, Ordering::Relaxed);
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

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Makes this thread the poller's, until the returned guard is dropped.
    ///
    /// # Panics
    /// If another thread is this poller's already, or this thread another poller's.
    pub fn enter(self: &Arc<Self>) -> Entered {
        // Acquire: what was done on the thread that was the poller's before is seen on this one.
        let entered = self.entered.swap(true, Ordering::Acquire);
        assert!(!entered, "a poller has one thread at a time");
        thread::enter(self.address(), self.pool.clone());
        // A model has no global pool.
        #[cfg(not(loom))]
        self.pool().keep();
        Entered { mailbox: self.clone(), stays: PhantomData }
    }

    fn address(&self) -> *const () {
        ptr::from_ref(self).cast()
    }

    /// Whether this is the poller's own thread.
    #[inline]
    pub fn is_local(&self) -> bool {
        thread::is_of(self.address())
    }

    /// Leaves a command. Never blocks for longer than another thread takes to leave one. Once the poller has ended it
    /// does nothing.
    pub fn post(&self, command: Command) {
        if self.is_local() && thread::post(command) {
            return;
        }
        let left = lock(&self.commands).as_mut().map(|commands| commands.push(command)).is_some();
        if left {
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
        if thread::has_commands() {
            return false;
        }
        self.state.compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The poller's wait is over: until it is about to sleep again nobody need call it.
    #[inline]
    pub(crate) fn awake(&self) {
        // NOTIFIED stays, for `take`, which sees what was left before. Relaxed: nothing is handed over here.
        let (done, otherwise) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.state.compare_exchange(SLEEPING, AWAKE, done, otherwise);
    }

    /// The poller is awake. Moves what was left on this thread, and from others, to the end of `commands`. Says
    /// whether another thread has called.
    pub fn take(&self, commands: &mut Vec<Command>) -> bool {
        thread::take_commands(commands);
        if self.state.load(Ordering::Acquire) == AWAKE {
            return false;
        }
        let notified = self.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED;
        if notified {
            if let Some(left) = &mut *lock(&self.commands) {
                commands.append(left);
            }
        }
        notified
    }

    /// Whether something was left on this thread that had better be done before the turn ends.
    pub fn is_urgent(&self) -> bool {
        thread::is_urgent()
    }

    /// The poller has ended: what is left from now on is for nobody.
    pub fn close(&self) {
        let left = lock(&self.commands).take();
        drop(left);
    }
}

/// While it lives, this thread is a poller's.
#[derive(Debug)]
pub struct Entered {
    /// Keeps the address from being taken by another mailbox meanwhile.
    mailbox: Arc<Mailbox>,
    /// Not to another thread.
    stays: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        thread::leave();
        #[cfg(not(loom))]
        self.mailbox.pool().let_go();
        // Release: see `enter`.
        self.mailbox.entered.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("notify", &self.notify).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::time::Instant;

    use super::*;
    use crate::timer::Tick;

    /// Counts how often it rings.
    #[derive(Debug, Default)]
    struct Bell(AtomicU32);

    impl Notify for Bell {
        fn notify(&self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[derive(Debug)]
    struct NoTime;

    impl Clock for NoTime {
        fn now(&self) -> Tick {
            0
        }

        fn tick_of(&self, _: Instant) -> Tick {
            0
        }
    }

    #[test]
    fn a_poller_is_called_while_it_sleeps_and_not_when_its_wait_is_over() {
        let bell = Arc::new(Bell::default());
        let mailbox = Mailbox::new(bell.clone(), Arc::new(NoTime));
        let (rings, mut none) = (|| bell.0.swap(0, Relaxed), Vec::new());
        assert!(mailbox.sleep());
        mailbox.wake();
        assert_eq!(rings(), 1);
        mailbox.awake();
        // It was called, whatever has ended its wait.
        assert!(mailbox.take(&mut none) && mailbox.sleep());
        mailbox.awake();
        assert!(!mailbox.take(&mut none) && mailbox.sleep());
        mailbox.awake();
        mailbox.wake();
        mailbox.wake();
        assert_eq!(rings(), 0);
        // It does not sleep before it has taken what was left.
        assert!(!mailbox.sleep() && mailbox.take(&mut none) && mailbox.sleep());
        mailbox.wake();
        assert_eq!(rings(), 1);
    }
}
