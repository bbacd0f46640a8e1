//! What a layer above says of the requests that it works at.

/// The requests that a layer above has counted.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// How many have begun; it wraps, and is never 0 again.
    pub begun: u32,
    /// All are over, the last was nothing but a head, and its response was handed over whole.
    pub are_over: bool,
}
