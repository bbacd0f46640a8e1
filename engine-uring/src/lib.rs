//! The io_uring engine: the operators' vectors, submitted to the kernel.
//!
//! # How it works
//! Each poller has a ring of its own. Per stream there is at most one receive and one send in flight; their vectors
//! are lent by the operators at submission and acknowledged at the completion, and the memory belongs to the kernel
//! in between, whatever happens to the connection. A turn is one `io_uring_enter`: it submits what was queued since
//! the last, and waits.
//!
//! A small send whose acknowledgement nobody waits for completes when it is submitted, and the wait that submits it is for
//! one completion more: an echo is one system call.
//!
//! Streams that carry large messages beside each other are polled, and received from by `recv`, one after the other, while what has
//! come is still in the cache.
//!
//! Closing is `shutdown(2)`, which completes what is in flight, then the last completion, then `close(2)`. A
//! descriptor that is closed earlier sends no FIN, and its number may be reused under an operation that still runs.
//!
//! # Portability
//! Linux 5.10.162, 5.15 and later. Whether the running kernel, with its configuration and its sandbox, can do
//! it is found by a self-test, not by the version: see [`Uring::new`]. Where it cannot, the error is an
//! [`Unavailable`], which says why and what would help.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg(target_os = "linux")]

mod buffers;
mod engine;
#[cfg(duopoll_faults)]
mod faults;
mod features;
mod plan;
mod ring;
mod selftest;
mod socket;
mod sys;
mod unavailable;
mod unhandled;
#[cfg(feature = "zerocopy")]
mod zerocopy;

pub use engine::{COMPLETIONS_PER_TURN, Uring};
pub use features::{Feature, FeatureReport, Features, Report};
pub use plan::probe;
pub use unavailable::Unavailable;
