//! Servers of HTTP, gRPC and TLS. The load comes from `wrk` and `h2load`.
//!
//! The servers on hyper run one and the same [`service`](mod@service) with one configuration of hyper and rustls, on this
//! project and on tokio. The others are what their own documentation shows, with answers of the same length.
//!
//! - [`shape`]: what is asked, and what the right answer is.
//! - [`measure()`]: one server, one run. [`generator`] runs the tools and reads what they print, [`client`] is a small
//!   client of our own, for a first look at the answer and for connections that stay silent.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::process;
use crate::servers::Role;

#[cfg(feature = "http")]
pub mod certificate;
#[cfg(feature = "http")]
pub mod client;
#[cfg(feature = "cyper")]
pub mod cyper;
#[cfg(feature = "http")]
pub mod duopoll;
pub mod generator;
#[cfg(feature = "http")]
pub mod grpc;
#[cfg(feature = "http")]
pub mod measure;
#[cfg(feature = "monoio-http")]
pub mod monoio;
pub mod nginx;
#[cfg(feature = "ntex")]
pub mod ntex;
#[cfg(feature = "http")]
pub mod service;
pub mod shape;
#[cfg(feature = "http")]
pub mod tokio;

#[cfg(feature = "http")]
pub use measure::measure;
use shape::{App, Ask, Shape};

/// The server that every ratio refers to.
pub const YARDSTICK: &str = "tokio";

/// What a server is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The service.
    pub app: App,
    /// Whether HTTP/2 comes, for servers that have to know.
    pub http2: bool,
    /// The folder of the certificate, for TLS.
    pub tls: Option<PathBuf>,
    /// Threads.
    pub threads: usize,
    /// Whether each of more threads has a core of its own, where the server can do that.
    pub pinned: bool,
}

/// How a server is started.
#[derive(Clone, Copy)]
pub enum Start {
    /// A function of this executable; it returns only on failure.
    Function(fn(&Options) -> io::Result<()>),
    /// The Go module.
    Go,
    /// nginx, with a configuration of ours.
    Nginx,
}

/// A row of the table of servers.
#[derive(Clone, Copy)]
pub struct Server {
    /// The name on the command line and in the report.
    pub name: &'static str,
    /// What it stands for.
    pub role: Role,
    /// How it is started.
    pub start: Start,
    /// Whether it can be asked that.
    pub serves: fn(&Shape) -> bool,
    /// One line for the report.
    pub about: &'static str,
}

/// The servers of this build, in the order in which a round runs them.
pub fn all() -> &'static [Server] {
    const SERVERS: &[Server] = &[
        #[cfg(feature = "http")]
        Server {
            name: YARDSTICK,
            role: Role::Yardstick,
            start: Start::Function(tokio::serve_current_thread),
            serves: |_| true,
            about: "hyper, axum, tonic, rustls on tokio's current-thread runtime",
        },
        #[cfg(feature = "http")]
        Server {
            name: "duopoll-epoll",
            role: Role::Ours,
            start: Start::Function(|options| duopoll::serve(options, ::duopoll::Engine::Epoll)),
            serves: |_| true,
            about: "the same on this project, epoll engine, a poller a thread",
        },
        #[cfg(feature = "http")]
        Server {
            name: "duopoll-uring",
            role: Role::Ours,
            start: Start::Function(|options| duopoll::serve(options, ::duopoll::Engine::Uring)),
            serves: |_| true,
            about: "the same on this project, io_uring engine, a poller a thread",
        },
        #[cfg(feature = "http")]
        Server {
            name: "tokio-mt",
            role: Role::Peer,
            start: Start::Function(tokio::serve_multi_thread),
            serves: |_| true,
            about: "the same on tokio's multi-thread runtime, a worker a thread",
        },
        #[cfg(feature = "monoio-http")]
        Server {
            name: "monoio",
            role: Role::Peer,
            start: Start::Function(monoio::serve),
            serves: |shape| is_simple(shape) && shape.streams == 1,
            about: "monoio-http, io_uring driver, HTTP/1.1 only",
        },
        #[cfg(feature = "ntex")]
        Server {
            name: "ntex",
            role: Role::Peer,
            start: Start::Function(ntex::serve),
            serves: is_simple,
            about: "ntex, neon on io_uring, one worker, HTTP/1.1 only",
        },
        #[cfg(feature = "cyper")]
        Server {
            name: "compio",
            role: Role::Peer,
            start: Start::Function(cyper::serve),
            serves: is_simple,
            about: "hyper and axum on compio by cyper-axum, HTTP/1.1 only",
        },
        Server {
            name: "go",
            role: Role::Peer,
            start: Start::Go,
            serves: |_| true,
            about: "Go's net/http, and grpc-go; GOMAXPROCS is the number of threads",
        },
        Server {
            name: "nginx",
            role: Role::Peer,
            start: Start::Nginx,
            // With one process only: those of more would have to be added up.
            serves: |shape| shape.threads == 1 && matches!(shape.ask, Ask::Hello | Ask::Bytes),
            about: "nginx, one process, text of the configuration and files",
        },
    ];
    SERVERS
}

/// What the peers of the io_uring field are asked: small answers by HTTP/1.1, as it is, on one thread.
#[cfg(any(feature = "monoio-http", feature = "ntex", feature = "cyper"))]
fn is_simple(shape: &Shape) -> bool {
    !shape.http2 && !shape.tls && shape.threads == 1 && matches!(shape.ask, Ask::Hello | Ask::Json)
}

/// The server of that name.
pub fn find(name: &str) -> Option<&'static Server> {
    all().iter().find(|server| server.name == name)
}

/// Whether the tools and this build can do a shape, or why not.
pub fn available(shape: &Shape) -> Result<(), String> {
    if !cfg!(feature = "http") {
        return Err("built without the feature `http`: HTTP, gRPC and TLS are left out".into());
    }
    let (tool, package) = match shape {
        Shape { silent: true, .. } => return Ok(()),
        Shape { http2: true, .. } => ("h2load", "nghttp2-client"),
        _ => ("wrk", "wrk"),
    };
    if process::have(tool) {
        return Ok(());
    }
    Err(format!("`{tool}` is not installed (package {package}): its scenarios are left out"))
}

/// Where the certificate is that this makes, the files of nginx and what is posted.
#[cfg(feature = "http")]
pub fn certified(scratch: &Path) -> io::Result<PathBuf> {
    let folder = scratch.join("web");
    std::fs::create_dir_all(&folder)?;
    certificate::make(&folder)?;
    Ok(folder)
}

/// There is no TLS in this build.
#[cfg(not(feature = "http"))]
pub fn certified(_: &Path) -> io::Result<PathBuf> {
    Err(io::Error::other("built without the feature `http`"))
}
