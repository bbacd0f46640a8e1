//! What a driver counts.

/// What a driver has seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverStats {
    /// Connections registered.
    pub connections: u64,
    /// Connections released.
    pub closed: u64,
    /// Connections that were closed by force, with something unsent or unread.
    pub forced: u64,
    /// Connections that were closed by this side and whose peer did not close its own within a second.
    pub close_timeouts: u64,
    /// Times that accepting was put off because the process or the machine ran out of something.
    pub accept_backoffs: u64,
    /// Connections that were gone before they could be accepted.
    pub accept_aborts: u64,
    /// Connections that were ended because no byte had moved for too long.
    pub idle_timeouts: u64,
    /// Times that a connection was received from no longer because it held its share of a memory budget.
    pub memory_stops: u64,
    /// Times that accepting was put off because memory was short.
    pub memory_pauses: u64,
    /// Reads that have failed because what they waited for did not fit into the memory that was left.
    pub memory_refusals: u64,
    /// Connections that were reset because their peers did not read and memory was used up.
    pub memory_resets: u64,
    /// Sends without a copy that the kernel took.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_sends: u64,
    /// Bytes that left without a copy.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_bytes: u64,
    /// Bytes that were to leave without a copy, and that the kernel copied all the same.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_copied_bytes: u64,
    /// Sends without a copy that the kernel refused, and that went out with one.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_fallbacks: u64,
    /// Bytes that the kernel reads from at this time.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_pinned_bytes: u64,
}
