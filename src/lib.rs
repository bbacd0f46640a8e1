//! Networking for RPC servers, proxies and clients on Linux.
//!
//! A connection owns its memory: the poller receives into a chained, pooled buffer, users take slices out of it and
//! put pieces into it, none of them copied. Underneath is one of two engines, epoll or io_uring, chosen when the
//! program starts.
//!
//! ```no_run
//! use duopoll::{Connection, EventLoop, Listener};
//!
//! // Messages with a length in front, sent back.
//! let server = EventLoop::builder()
//!     .on_request(async |connection: &mut Connection| {
//!         let body = connection.frame(4, length).await?;          // owned, contiguous
//!         connection.write(&(body.len() as u32).to_be_bytes())?;  // copied
//!         connection.push(body);                                  // not copied
//!         connection.flush().await                                // one system call for both
//!     })
//!     .serve(Listener::bind("127.0.0.1:8080")?)?;
//! println!("{}", server.engine_report());
//!
//! fn length(header: &[u8]) -> std::io::Result<usize> {
//!     Ok(u32::from_be_bytes(header.try_into().unwrap()) as usize)
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! - [`EventLoop`] is where a server begins; its handlers are async closures that run on the connection's poller.
//! - [`Connection`], with its halves [`Reader`] and [`Writer`], is what they get.
//! - [`LinkBuffer`] and [`Slice`] are the memory, useful without any socket too.
//! - [`task`] has tasks, and [`time`] timers, on the pollers; [`mux`] has many calls at once on one connection.
//! - [`udp`] has sockets and servers for datagrams, [`relay`] joins two connections, [`restart`] hands listeners over.
//! - [`Stats`] are the figures of pollers, and [`ServerStats`] those of a server, for a metrics endpoint.
//! - [`Engine`] says which engine to use, and [`EngineReport`] which one it was, and why.
//!
//! # Processes
//! After a fork the child may use nothing of this but what it makes anew: the pollers' threads are not in it, rings and
//! descriptors are the parent's. What it may do is execute another program.
//!
//! # Cargo features
//! Features say what is in the binary; which engine runs is decided at run time.
//!
//! | feature | default | |
//! |---|---|---|
//! | `epoll` | yes | the epoll engine |
//! | `uring` | yes | the io_uring engine |
//! | `zerocopy` | no | large pieces are sent without a copy: `MSG_ZEROCOPY`, `SENDMSG_ZC` |
//! | `tokio` | no | connections as `AsyncRead`, `AsyncBufRead` and `AsyncWrite` of tokio |
//! | `futures-io` | no | the same of futures, and accepted connections as a `Stream` |
//! | `hyper` | no | HTTP/1 and 2: hyper's traits, and servers of hyper and tower services |
//! | `tracing` | no | spans and events of connections, requests and servers |
//! | `metrics` | no | the figures for the recorder of the crate `metrics` |
//! | `axum`, `tonic` | no | listeners and connections for the servers of these that run on tokio's runtime |
//! | `quinn` | no | QUIC: quinn's runtime on the pollers, and an endpoint of one port on each |
//! | `rustls` | no | TLS by rustls, with the cryptography that the program's own rustls has |
//! | `rustls-ring`, `rustls-aws-lc-rs` | no | the same with one of these |

#![cfg_attr(docsrs, feature(doc_cfg))]
// Without an engine there is one error to read, below, and nothing else.
#![cfg_attr(not(any(feature = "epoll", feature = "uring")), allow(unused))]

#[cfg(not(any(feature = "epoll", feature = "uring")))]
compile_error!("duopoll needs an engine: enable the feature `epoll`, `uring`, or both");

mod address;
mod affinity;
mod async_fd;
#[cfg(feature = "axum")]
pub mod axum;
mod blocking;
mod caught;
mod clock;
mod connection;
mod dialer;
mod engine;
#[cfg(feature = "futures-io")]
pub mod futures_io;
#[cfg(feature = "hyper")]
pub mod hyper;
mod listener;
mod memory;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod mux;
mod named;
mod poller;
mod pollers;
#[cfg(feature = "quinn")]
pub mod quinn;
pub mod relay;
mod resolver;
pub mod restart;
mod server;
mod stats;
pub mod task;
mod tcp;
pub mod time;
mod timings;
#[cfg(feature = "rustls")]
pub mod tls;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "tonic")]
pub mod tonic;
mod trace;
pub mod udp;

/// What io_uring can do on this kernel, and what is used of it.
#[cfg(feature = "uring")]
pub mod uring {
    pub use duopoll_uring::{Feature, FeatureReport, Features, Report, Unavailable, probe};
}

pub use address::{Address, IntoAddress};
pub use async_fd::AsyncFd;
pub use blocking::Blocking;
pub use connection::Connection;
pub use dialer::Dialer;
pub use duopoll_core::{
    CallbackId, Control, Error, Limits, LinkBuffer, LinkReader, LinkWriter, MemoryLevel, Pool,
    PoolConfig, PoolStats, Reader, Sender, Slice, Watch, WhenFull, Writer,
};
pub use engine::{Engine, EngineReport};
pub use listener::{Listener, ListenerOptions};
pub use pollers::{Balance, Entered, PollerOptions, Pollers};
pub use server::builder::{Builder, EventLoop};
pub use server::life::{Job, Task};
pub use server::service::Service;
pub use server::{RunningServer, Server, WeakServer};
pub use stats::{Figure, Kind, ServerStats, Stats};
pub use tcp::Keepalive;
pub use timings::{Histogram, Timing, Timings};
