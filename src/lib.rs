//! Networking for RPC servers, proxies and clients on Linux.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("duopoll runs on Linux only: it is built on epoll and io_uring");

#[cfg(not(any(feature = "epoll", feature = "uring")))]
compile_error!("duopoll needs an engine: enable the feature `epoll`, `uring`, or both");


mod address;
mod connection;
mod engine;
mod event_loop;
mod executor;
mod listener;
mod poller;
mod stats;

pub use address::{Address, IntoAddress};
pub use connection::Connection;
pub use duopoll_core::{Error, Limits, LinkBuffer, Pool, PoolConfig, PoolStats, Reader, Slice, Writer};
pub use engine::{Engine, EngineReport};
pub use event_loop::{Builder, EventLoop, Server, Service};
pub use listener::Listener;
pub use stats::Stats;
