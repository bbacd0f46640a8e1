//! What a poller is made of.

use duopoll_core::Pool;

use crate::engine::Choice;
use crate::memory::MemoryOptions;
use crate::poller::thread_start::ThreadStart;
use crate::timings::TimingOptions;

/// What each poller is made with.
#[derive(Clone)]
pub(crate) struct PollerSpec {
    pub(crate) choice: Choice,
    pub(crate) on_thread_start: Option<ThreadStart>,
    pub(crate) memory: MemoryOptions,
    pub(crate) timing: TimingOptions,
    /// None: the process's.
    pub(crate) pool: Option<Pool>,
}
