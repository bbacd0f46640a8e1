//! The ring: mapping, submission and waiting, through the `io-uring` crate.

use std::fmt;
use std::io;
use std::time::Duration;

use duopoll_core::SEND_VECTORS_MAX;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};
use libc::{iovec, msghdr};

/// Submission queue entries; halved as often as it takes if the kernel has no memory for them.
const ENTRIES: u32 = 256;
const ENTRIES_MIN: u32 = 16;
/// Completion queue entries per submission entry. The kernel keeps what overflows, but at a cost.
const COMPLETIONS_PER_ENTRY: u32 = 16;

/// Wait for completions, and run what completes them.
const ENTER_GETEVENTS: u32 = 1 << 0;
/// The argument is an `io_uring_getevents_arg`, with a timeout.
const ENTER_EXT_ARG: u32 = 1 << 3;

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
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Setup::DeferTaskrun => "base tier, deferred completions",
            Setup::CoopTaskrun => "base tier, cooperative completions",
            Setup::Plain => "base tier",
        })
    }
}

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
    pub(crate) enters: u64,
}

impl Ring {
    /// A ring of the full size, or of what the kernel has memory for.
    pub(crate) fn new(setup: Setup) -> io::Result<Ring> {
        let mut entries = ENTRIES;
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
        let ring = builder.build(entries)?;
        let places = ring.params().sq_entries() as usize;
        // SAFETY: iovecs and a msghdr may be all zero.
        let messages = (0..places).map(|_| unsafe { std::mem::zeroed() }).collect();
        Ok(Ring { ring, messages, pushed: 0, enters: 0 })
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
        // EBUSY, EAGAIN: completions must be taken first. Others are reported by the next wait.
        let _ = self.enter(0, None);
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

    /// Queues an entry. There must be room.
    ///
    /// # Safety
    /// What the entry points to stays valid until its completion, but for vectors and header of this ring.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: promised by the caller.
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "there must be room");
        self.pushed += usize::from(pushed.is_ok());
    }

    /// Submits what is queued and, unless `want` is 0, waits until so many completions are there or the time is
    /// over.
    pub(crate) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        let to_submit = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        self.enters += 1;
        let timespec;
        let mut args = SubmitArgs::new();
        if let Some(timeout) = timeout {
            timespec = Timespec::from(timeout);
            args = args.timespec(&timespec);
        }
        // SAFETY: the argument is what EXT_ARG says that it is.
        let result = unsafe {
            submitter.enter(to_submit, want, ENTER_GETEVENTS | ENTER_EXT_ARG, Some(&args))
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // ETIME: the time is over. EINTR: a signal. EBUSY, EAGAIN: completions must be taken before more
                // is submitted; what was not stays queued.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves completions to the end of `into`, at most `max`.
    pub(crate) fn completions(&mut self, into: &mut Vec<cqueue::Entry>, max: usize) {
        into.extend(self.ring.completion().take(max));
    }

    /// Completions that the kernel could not put into the queue at once.
    pub(crate) fn overflows(&mut self) -> u64 {
        u64::from(self.ring.completion().overflow())
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("entries", &self.messages.len())
            .field("enters", &self.enters)
            .finish_non_exhaustive()
    }
}
