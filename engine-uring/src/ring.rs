//! The ring: mapping, submission and waiting, through the `io-uring` crate.

use std::fmt;
use std::io;
use std::time::Duration;

use duopoll_core::{SEND_VECTORS_MAX, fault};
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, squeue};
use libc::{iovec, msghdr};

use crate::features::Feature;

#[cfg(test)]
pub(crate) mod testing;

/// Submission queue entries; halved as often as it takes if the kernel has no memory for them.
const ENTRIES: u32 = 256;
const ENTRIES_MIN: u32 = 16;
/// Completion queue entries per submission entry. The kernel keeps what overflows, but at a cost.
const COMPLETIONS_PER_ENTRY: u32 = 16;

/// Submissions that the kernel may refuse in a row, before it is left alone for a while.
const REFUSALS_MAX: u32 = 2;
/// For how long, unless there are completions to take.
const REFUSED_RETRY: Duration = Duration::from_millis(10);

/// Wait for completions, and run what completes them.
const ENTER_GETEVENTS: u32 = 1 << 0;
/// The argument is an `io_uring_getevents_arg`, with a timeout.
const ENTER_EXT_ARG: u32 = 1 << 3;
/// The wait does not count as one for a disk.
const ENTER_NO_IOWAIT: u32 = 1 << 7;

/// How a ring is set up, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Completions run when the poller enters the kernel, never as an interruption (Linux 6.1).
    DeferTaskrun,
    /// Completions run when the poller enters the kernel for any reason (Linux 5.19).
    CoopTaskrun,
    /// As in the beginning.
    Plain,
}

impl Setup {
    pub(crate) const ALL: [Setup; 3] = [Setup::DeferTaskrun, Setup::CoopTaskrun, Setup::Plain];

    /// What it needs of the kernel.
    pub(crate) fn feature(self) -> Option<Feature> {
        match self {
            Setup::DeferTaskrun => Some(Feature::DeferredCompletions),
            Setup::CoopTaskrun => Some(Feature::CooperativeCompletions),
            Setup::Plain => None,
        }
    }
}

/// An entry was not queued, since the submission queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// Vectors and header of one submission. The kernel copies them when the submission is consumed
/// (`IORING_FEAT_SUBMIT_STABLE`), so there is one for each place in the queue.
struct Message {
    vectors: [iovec; SEND_VECTORS_MAX],
    header: msghdr,
}

pub(crate) struct Ring {
    ring: IoUring,
    /// Boxed and never moved: the kernel is given their addresses.
    messages: Box<[Message]>,
    /// Entries pushed so far, which says whose turn it is in `messages`.
    pushed: usize,
    /// Submissions that the kernel has refused in a row.
    refusals: u32,
    /// What has broken the ring when room was made; the next wait reports it.
    broken: Option<io::Error>,
    pub(crate) enters: u64,
    enter_flags: u32,
    #[cfg(duopoll_faults)]
    pub(crate) faults: crate::faults::Faults,
}

impl Ring {
    /// A ring of the full size, or of what the kernel has memory for.
    pub(crate) fn new(setup: Setup) -> io::Result<Ring> {
        let mut entries = ENTRIES;
        #[cfg(duopoll_faults)]
        if let Some(few) = duopoll_core::faults::ring_entries() {
            entries = few;
        }
        #[cfg(test)]
        if let Some(few) = testing::ENTRIES.get() {
            entries = few;
        }
        loop {
            match Ring::with_entries(setup, entries) {
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOMEM) && entries > ENTRIES_MIN =>
                {
                    entries /= 2;
                }
                result => return result,
            }
        }
    }

    pub(crate) fn with_entries(setup: Setup, entries: u32) -> io::Result<Ring> {
        fault!(Setup);
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(entries * COMPLETIONS_PER_ENTRY);
        match setup {
            Setup::DeferTaskrun => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
            }
            Setup::CoopTaskrun => {
                builder.setup_coop_taskrun().setup_submit_all();
            }
            Setup::Plain => {}
        }
        #[cfg(not(test))]
        let ring = builder.build(entries)?;
        #[cfg(test)]
        let ring = testing::build(&mut builder, entries)?;
        let places = ring.params().sq_entries() as usize;
        // SAFETY: iovecs and a msghdr may be all zero.
        let messages = (0..places).map(|_| unsafe { std::mem::zeroed() }).collect();
        Ok(Ring {
            ring,
            messages,
            pushed: 0,
            refusals: 0,
            broken: None,
            enters: 0,
            enter_flags: ENTER_GETEVENTS | ENTER_EXT_ARG,
            #[cfg(duopoll_faults)]
            faults: Default::default(),
        })
    }

    #[cfg(test)]
    pub(crate) fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.ring)
    }

    /// The feature bits that the kernel reported (`IORING_FEAT_*`).
    pub(crate) fn has_base_features(&self) -> bool {
        let params = self.ring.params();
        params.is_feature_nodrop()
            && params.is_feature_submit_stable()
            && params.is_feature_fast_poll()
            && params.is_feature_ext_arg()
            && params.is_feature_native_workers()
            && params.is_feature_resource_tagging()
    }

    /// Whether the kernel says that it knows `IORING_ENTER_NO_IOWAIT`.
    pub(crate) fn has_no_iowait(&self) -> bool {
        self.ring.params().is_feature_no_iowait()
    }

    /// From now on, waits do not count as waiting for a disk.
    pub(crate) fn wait_without_iowait(&mut self) {
        self.enter_flags |= ENTER_NO_IOWAIT;
    }

    /// Registers a ring of buffers.
    ///
    /// # Safety
    /// The memory at `address` has room for the entries, and stays until the last operation that uses the buffers is
    /// over.
    pub(crate) unsafe fn register_buffers(
        &self,
        address: u64,
        entries: u16,
        group: u16,
        flags: u16,
    ) -> io::Result<()> {
        let submitter = self.ring.submitter();
        // SAFETY: the memory stays until the last operation that uses the buffers, as the caller promises.
        unsafe { submitter.register_buf_ring_with_flags(address, entries, group, flags) }
    }

    pub(crate) fn probe(&self) -> io::Result<io_uring::Probe> {
        let mut probe = io_uring::Probe::new();
        self.ring.submitter().register_probe(&mut probe)?;
        Ok(probe)
    }

    /// Makes room for one entry, by submitting if need be. False if the kernel takes nothing now.
    pub(crate) fn make_room(&mut self) -> bool {
        if !self.ring.submission().is_full() {
            return true;
        }
        if self.refusals == 0 {
            if let Err(error) = self.enter(0, None) {
                self.broken = Some(error);
            }
        }
        !self.ring.submission().is_full()
    }

    /// The vectors of the next entry.
    pub(crate) fn next_vectors(&mut self) -> &mut [iovec; SEND_VECTORS_MAX] {
        let place = self.pushed % self.messages.len();
        &mut self.messages[place].vectors
    }

    /// The header of the next entry, for the first `count` of [`next_vectors`](Ring::next_vectors).
    pub(crate) fn next_header(&mut self, count: usize) -> *mut msghdr {
        let place = self.pushed % self.messages.len();
        let Message { vectors, header } = &mut self.messages[place];
        header.msg_iov = vectors.as_mut_ptr();
        header.msg_iovlen = count as _;
        header
    }

    /// Queues an entry.
    ///
    /// # Errors
    /// There is no room: the kernel learns nothing of the entry, and [`make_room`](Ring::make_room) says when there is.
    ///
    /// # Safety
    /// What the entry points to stays valid until its completion, but for vectors and header of this ring.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), NoRoom> {
        #[cfg(test)]
        if testing::refuses_push() {
            return Err(NoRoom);
        }
        #[cfg(duopoll_faults)]
        let entry = &if self.ring.submission().is_full() {
            return Err(NoRoom);
        } else {
            self.faults.submitted(entry)
        };
        // SAFETY: what the entry points to stays valid until its completion, as the caller promises.
        unsafe { self.ring.submission().push(entry) }.map_err(|_| NoRoom)?;
        self.pushed += 1;
        Ok(())
    }

    /// Submits what is queued and, unless `want` is 0, waits until so many completions are there or the time is
    /// over. While the kernel refuses submissions, every other call is such a wait only, and a short one.
    pub(crate) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        if self.refusals >= REFUSALS_MAX {
            self.refusals = 1;
            let timeout = timeout.map_or(REFUSED_RETRY, |timeout| timeout.min(REFUSED_RETRY));
            return self.enter_with(0, 1, Some(timeout));
        }
        let to_submit = self.ring.submission().len() as u32;
        self.enter_with(to_submit, want, timeout)
    }

    fn enter_with(
        &mut self,
        to_submit: u32,
        want: u32,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let submitter = self.ring.submitter();
        self.enters += 1;
        let timespec;
        let mut args = SubmitArgs::new();
        if let Some(timeout) = timeout {
            timespec = Timespec::from(timeout);
            args = args.timespec(&timespec);
        }
        match enter(&submitter, to_submit, want, self.enter_flags, &args) {
            Ok(submitted) => {
                if submitted > 0 {
                    self.refusals = 0;
                }
                Ok(())
            }
            Err(error) => match error.raw_os_error() {
                // The time is over, or a signal has come.
                Some(libc::ETIME | libc::EINTR) => Ok(()),
                // EBUSY: completions must be taken before more is submitted. EAGAIN: there is no memory. What was not
                // submitted stays queued.
                Some(libc::EBUSY | libc::EAGAIN) => {
                    self.refusals += 1;
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Moves completions to the end of `into`, at most `max`.
    pub(crate) fn completions(&mut self, into: &mut impl Extend<cqueue::Entry>, max: usize) {
        into.extend(self.ring.completion().take(max));
    }

    /// Whether there are completions to be had without entering the kernel.
    pub(crate) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether the kernel keeps completions for which the queue has no room. It puts them there when it is entered again.
    pub(crate) fn overflows(&mut self) -> bool {
        self.ring.submission().cq_overflow()
    }
}

fn enter(
    submitter: &Submitter<'_>,
    to_submit: u32,
    want: u32,
    flags: u32,
    args: &SubmitArgs<'_, '_>,
) -> io::Result<usize> {
    #[cfg(duopoll_faults)]
    if to_submit > 0 {
        fault!(Submit);
    }
    fault!(Wait);
    // SAFETY: the argument is what EXT_ARG says that it is.
    unsafe { submitter.enter(to_submit, want, flags, Some(args)) }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("entries", &self.messages.len())
            .field("enters", &self.enters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_without_room_changes_nothing() {
        let mut ring = Ring::with_entries(Setup::Plain, 2).expect("io_uring");
        let nop = |user_data| io_uring::opcode::Nop::new().build().user_data(user_data);
        // SAFETY: a Nop points to no memory.
        let push = |ring: &mut Ring, user_data| unsafe { ring.push(&nop(user_data)) };
        assert_eq!([1, 2].map(|user_data| push(&mut ring, user_data)), [Ok(()); 2]);
        let next = ring.next_vectors().as_ptr();
        assert_eq!(push(&mut ring, 3), Err(NoRoom));
        assert_eq!((ring.pushed, ring.next_vectors().as_ptr()), (2, next));
        assert!(ring.make_room());
        assert_eq!(push(&mut ring, 4), Ok(()));
        ring.enter(3, None).expect("entered");
        let mut completions = Vec::new();
        ring.completions(&mut completions, usize::MAX);
        completions.sort_by_key(cqueue::Entry::user_data);
        assert_eq!(completions.iter().map(cqueue::Entry::user_data).collect::<Vec<_>>(), [1, 2, 4]);
    }
}
