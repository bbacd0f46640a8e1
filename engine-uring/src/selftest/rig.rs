//! What the tests are made with: a small ring, and a buffer that is leaked if the kernel may still have it.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{cqueue, opcode, squeue, types::Fd};

use super::peers;
use crate::ring::{Ring, Setup};
use crate::unavailable::Unavailable;

/// Entries of the ring for the test.
pub(super) const ENTRIES: u32 = 8;
/// How long a completion may take that is due at once. Generous, for machines that are loaded or emulated.
pub(super) const COMPLETION_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for one that needs only to be fetched.
pub(super) const READY_COMPLETION_TIMEOUT: Duration = Duration::from_millis(500);

/// A ring under test.
pub(super) struct Rig {
    pub(super) ring: Ring,
    taken: Vec<cqueue::Entry>,
    /// Where the test receives.
    pub(super) buffer: Box<[u8; 16]>,
    /// The kernel may still write to the buffer.
    pub(super) lent: bool,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.lent {
            // A receive that never completed: the kernel may keep what it was given.
            mem::forget(mem::take(&mut self.buffer));
        }
    }
}

impl Rig {
    pub(super) fn of(ring: Ring) -> Rig {
        Rig { ring, taken: Vec::new(), buffer: Box::default(), lent: false }
    }

    pub(super) fn new(setup: Setup) -> Result<Rig, Unavailable> {
        let ring = Ring::with_entries(setup, ENTRIES);
        Ok(Rig::of(ring.map_err(refused("io_uring_setup"))?))
    }

    /// Queues a receive into the buffer, which is lent until it is over.
    pub(super) fn receive(&mut self, socket: &OwnedFd, user_data: u64) -> Result<(), Unavailable> {
        let (buffer, len) = (self.buffer.as_mut_ptr(), self.buffer.len() as u32);
        let receive = opcode::Recv::new(Fd(socket.as_raw_fd()), buffer, len).build();
        // SAFETY: the buffer outlives the completion; if that does not come, `Rig::drop` gives it away.
        unsafe { self.push(&receive.user_data(user_data)) }?;
        self.lent = true;
        Ok(())
    }

    /// Queues an entry.
    ///
    /// # Safety
    /// That of [`Ring::push`].
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), Unavailable> {
        // SAFETY: what the entry points to stays valid, as the caller promises.
        unsafe { self.ring.push(entry) }.map_err(|_| broken("has no room for an entry"))
    }

    pub(super) fn enter(&mut self, want: u32) -> Result<(), Unavailable> {
        self.enter_for(want, COMPLETION_TIMEOUT)
    }

    pub(super) fn enter_for(&mut self, want: u32, patience: Duration) -> Result<(), Unavailable> {
        let entered = self.ring.enter(want, Some(patience));
        entered.map_err(|error| Unavailable::step("io_uring_enter", &error))
    }

    /// What an operation has done, which must not have failed.
    pub(super) fn count_of(
        &mut self,
        user_data: u64,
        step: &'static str,
    ) -> Result<usize, Unavailable> {
        count(&self.completion_of(user_data)?, step)
    }

    pub(super) fn result_of(&mut self, user_data: u64) -> Result<i32, Unavailable> {
        Ok(self.completion_of(user_data)?.result())
    }

    pub(super) fn completion_of(&mut self, user_data: u64) -> Result<cqueue::Entry, Unavailable> {
        self.completion_within(COMPLETION_TIMEOUT, user_data)
    }

    pub(super) fn completion_within(
        &mut self,
        guard: Duration,
        user_data: u64,
    ) -> Result<cqueue::Entry, Unavailable> {
        let start = Instant::now();
        loop {
            if let Some(at) = self.taken.iter().position(|entry| entry.user_data() == user_data) {
                return Ok(self.taken.swap_remove(at));
            }
            let left = guard.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(broken("does not complete what it was given"));
            }
            self.enter_for(1, left)?;
            self.ring.completions(&mut self.taken, ENTRIES as usize);
        }
    }
}

pub(super) fn refused(step: &'static str) -> impl Fn(io::Error) -> Unavailable {
    move |error| Unavailable::step(step, &error)
}

pub(super) fn broken(what: &str) -> Unavailable {
    Unavailable::old_kernel(what)
}

pub(super) fn count(completion: &cqueue::Entry, step: &'static str) -> Result<usize, Unavailable> {
    let result = completion.result();
    usize::try_from(result).map_err(|_| refused(step)(io::Error::from_raw_os_error(-result)))
}

pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Unavailable> {
    peers::socket_pair().map_err(|error| Unavailable::step("socketpair", &error))
}
