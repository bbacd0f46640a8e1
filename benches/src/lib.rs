//! Side-by-side comparison of duopoll with hand-written loops and with other libraries.
//!
//! The figure that counts is **CPU time per request of the server process**. On a loopback machine
//! it barely moves with the client or with the neighbours, while throughput and latency do. Every
//! server runs in a process of its own on one core, the load generator on another, and the servers
//! take turns in rounds (A B C, A B C, …), so that a slow minute of the machine hits all of them.
//! A single absolute number means nothing; the ratio to the yardstick *in the same run* does.
//!
//! - [`servers`]: every server, one file each, behind one table.
//! - [`load`]: the load generator, a single-threaded epoll loop of its own.
//! - [`proxy`]: proxies between the load generator and an echo server.
//! - [`udp`]: servers of datagrams, and their load generator. [`quic`]: the same for QUIC.
//! - [`web`]: servers of HTTP, gRPC and TLS, and the tools that drive them.
//! - [`scenario`] and [`plan`]: what is measured, for how long, with how many rounds.
//! - [`revision`]: the same servers of another revision. [`instructions`]: what a request takes, exactly.
//! - [`rounds`]: runs a plan on processors that are kept [`awake`], and repeats rounds that saw a [`disturbance`]; what the kernel's [`interrupts`] threads do is counted where it belongs. [`resp`], [`trace`] and [`golang`] are the parts that need tools which
//!   may be missing; the report then says so.
//! - [`report`]: table, Markdown, JSON and SVG.

pub mod address;
pub mod arguments;
pub mod awake;
pub mod cli;
pub mod disturbance;
pub mod golang;
pub mod instructions;
pub mod interrupts;
pub mod load;
pub mod plan;
pub mod process;
pub mod provided;
pub mod proxy;
pub mod quic;
pub mod report;
pub mod resp;
pub mod revision;
pub mod rounds;
pub mod scenario;
pub mod servers;
pub mod stats;
pub mod sys;
pub mod trace;
pub mod udp;
pub mod web;
