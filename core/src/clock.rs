//! What time it is.

use std::fmt;
use std::time::Instant;

use crate::timer::Tick;

/// The clock of a poller. The core reads no other.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, in ticks since the clock's beginning, rounded down.
    fn now(&self) -> Tick;

    /// An instant in ticks, rounded up, so that nothing is due too early; 0 if it was before the beginning.
    fn tick_of(&self, instant: Instant) -> Tick;

    /// Whether it goes as the kernel's does: not while a test has it stand.
    fn is_real(&self) -> bool {
        true
    }
}
