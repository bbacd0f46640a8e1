//! Servers of QUIC. The load comes from a generator of our own.
//!
//! All but one are quinn's endpoints with one configuration, and do the same with each stream. What differs
//! is what runs them: their sockets, timers and tasks. compio-quic has quinn's protocol, and the rest of its own.
//!
//! - [`shape`]: what is asked. `service`: what is done with a stream.
//! - [`load`]: the load generator.
//! - The servers, one file each.

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::ServerProcess;
use crate::servers::Role;

#[cfg(feature = "compio-quic")]
mod compio;
#[cfg(feature = "quic")]
pub mod config;
#[cfg(feature = "quic")]
mod duopoll;
#[cfg(feature = "quic")]
pub mod load;
#[cfg(feature = "quic")]
pub mod service;
pub mod shape;
#[cfg(feature = "quic")]
mod tokio;

use shape::Ask;

/// The server that every ratio refers to.
pub const YARDSTICK: &str = "tokio-ct";

/// What a server is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddrV4,
    /// What comes.
    pub ask: Ask,
    /// The folder of the certificate.
    pub certificate: PathBuf,
    /// Threads.
    pub threads: usize,
}

/// A row of the table of servers.
#[derive(Clone, Copy)]
pub struct Server {
    /// The name on the command line and in the report.
    pub name: &'static str,
    /// What it stands for.
    pub role: Role,
    /// Runs it; returns only on failure.
    pub run: fn(&Options) -> io::Result<()>,
    /// Whether it takes part in what has two threads.
    pub on_two_threads: bool,
    /// One line for the list.
    pub about: &'static str,
}

/// The servers of this build, in the order in which a round runs them.
pub fn all() -> &'static [Server] {
    const SERVERS: &[Server] = &[
        #[cfg(feature = "quic")]
        Server {
            name: YARDSTICK,
            role: Role::Yardstick,
            run: tokio::serve_current_thread,
            on_two_threads: true,
            about: "quinn on tokio's current-thread runtime",
        },
        #[cfg(feature = "quic")]
        Server {
            name: "duopoll-epoll",
            role: Role::Ours,
            run: |options| duopoll::serve(options, ::duopoll::Engine::Epoll),
            on_two_threads: true,
            about: "quinn on this project, epoll engine, a poller and an endpoint a thread",
        },
        #[cfg(feature = "quic")]
        Server {
            name: "duopoll-uring",
            role: Role::Ours,
            run: |options| duopoll::serve(options, ::duopoll::Engine::Uring),
            on_two_threads: true,
            about: "quinn on this project, io_uring engine, a poller and an endpoint a thread",
        },
        #[cfg(feature = "quic")]
        Server {
            name: "tokio-mt",
            role: Role::Peer,
            run: tokio::serve_multi_thread,
            on_two_threads: true,
            about: "quinn on tokio's multi-thread runtime, a worker a thread",
        },
        #[cfg(feature = "compio-quic")]
        Server {
            name: "compio-quic",
            role: Role::Peer,
            run: compio::serve,
            on_two_threads: false,
            about: "compio-quic on io_uring, one thread",
        },
    ];
    SERVERS
}

/// The server of that name.
pub fn find(name: &str) -> Option<&'static Server> {
    all().iter().find(|server| server.name == name)
}

/// Starts a server in a process of its own: as `program`, on a core or wherever the kernel wants.
pub fn start(
    program: &Path,
    server: &Server,
    options: &Options,
    core: Option<usize>,
) -> io::Result<ServerProcess> {
    let mut command = Command::new(program);
    command
        .args(["quic", server.name, "--listen", &options.listen.to_string()])
        .args(["--ask", options.ask.name(), "--threads", &options.threads.to_string()])
        .arg("--tls")
        .arg(&options.certificate);
    ServerProcess::start_datagrams(command, core, options.listen, &greeting())
}

/// A first datagram in a version of QUIC that no one speaks, so that a server answers with those that it does (RFC 9000, 6 and 15).
fn greeting() -> Vec<u8> {
    let mut datagram = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a];
    for id in [[1; 8], [2; 8]] {
        datagram.push(8);
        datagram.extend(id);
    }
    // A server may ignore a shorter one.
    datagram.resize(1200, 0);
    datagram
}
