//! Tasks: futures that a poller runs, and the handles on them.

mod executor;
mod handle;

pub use executor::{Executor, Ran};
pub use handle::{AbortHandle, JoinError, JoinHandle, Start, spawn};
