//! The half of duopoll that knows no engine: [`LinkBuffer`] and the memory under it, the state of a connection,
//! timers, and [`Poll`], the seam to the engines.
//!
//! Nothing in here reads a clock or makes a system call, but to map memory and for a barrier between threads. Readiness,
//! completions, bytes and the time come in as arguments, so that all of it can be driven by a test as well as by a
//! kernel.

#[cfg(not(target_os = "linux"))]
compile_error!("duopoll runs on Linux only: it is built on epoll and io_uring");

mod buffer;
mod confined;
mod connection;
mod driver;
mod error;
#[cfg(duopoll_faults)]
pub mod faults;
mod mailbox;
mod memory;
#[cfg(all(test, loom))]
mod models;
mod poll;
mod stash;
mod sync;
mod timer;
mod token;

pub use buffer::{
    BlockSource, Chain, ChainIter, Chunks, IO_BYTES_MAX, IO_VECTORS_MAX, Intake, LinkBuffer,
    LinkReader, LinkWriter,
};
pub use connection::{Control, Limits, Reader, Writer};
pub use driver::{Accepted, Driver, DriverStats, Group};
pub use error::Error;
pub use mailbox::{Clock, Command, Entered, Mailbox, on_poller_thread};
pub use memory::{Pool, PoolConfig, PoolStats, Slice, Tail};
pub use poll::{
    Capabilities, Deregister, EngineStats, Inputs, Kind, Lease, Next, Notify, Operators, Outputs,
    Poll, SEND_VECTORS_MAX,
};
pub use timer::{Tick, Wheel};
pub use token::{Token, TokenSlab};
