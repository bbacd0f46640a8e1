//! The half of duopoll that knows no engine: [`LinkBuffer`] and the memory under it, the state of a connection,
//! timers, and [`Poll`], the seam to the engines.
//!
//! Nothing in here reads a clock or makes a system call, but to map memory; what both engines ask of the kernel stands here
//! too, and is called by them alone. Readiness, completions, bytes and the time come in as arguments, so that all of it can
//! be driven by a test as well as by a kernel.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("duopoll runs on Linux only: it is built on epoll and io_uring");

mod block_cache;
mod buffer;
mod clock;
mod command;
mod connection;
mod contain;
mod driver;
mod errno;
mod error;
#[cfg(duopoll_faults)]
pub mod faults;
mod mailbox;
mod memory;
#[cfg(all(test, loom))]
mod models;
mod places;
mod poll;
mod readiness;
mod sync;
#[doc(hidden)]
pub mod syscalls;
#[doc(hidden)]
pub mod task;
mod thread;
mod timer;
#[doc(hidden)]
pub mod timers;
mod token;
mod token_table;
mod trace;
#[cfg(any(feature = "tokio", feature = "futures-io"))]
mod traits;

/// What engines and layers below do with the parts of a connection. It is not among what `duopoll` shows.
pub mod seam {
    pub use crate::buffer::BufferSeam;
    pub use crate::connection::WriterSeam;
}

pub use buffer::{
    Chain, ChainIter, Chunks, IO_BYTES_MAX, IO_VECTORS_MAX, LinkBuffer, LinkReader, LinkWriter,
    RecvBuffer,
};
pub use clock::Clock;
pub use command::Command;
pub use connection::{CallbackId, Control, Limits, Reader, Requests, Sender, Watch, Writer};
#[doc(hidden)]
pub use contain::{contain, contained_panics, report};
pub use driver::{Accepted, Driver, DriverStats, Group, WhenFull};
pub use error::Error;
pub use mailbox::{Entered, Mailbox};
pub use memory::{BlockSource, MemoryLevel, Pool, PoolConfig, PoolStats, Slice, Tail};
pub use poll::{
    Capabilities, Deregister, Direction, EngineStats, Inputs, Kind, Lease, Next, Notify, Operators,
    Outputs, Pending, Poll, Ready, SEND_VECTORS_MAX,
};
pub use readiness::Readiness;
pub use thread::{DirectSends, direct_sends, on_poller_thread};
pub use timer::{Tick, Wheel};
pub use token::{Token, TokenSlab};
pub use token_table::TokenTable;
