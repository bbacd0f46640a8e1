//! Servers of datagrams. The load comes from a generator of our own.
//!
//! - [`shape`]: what is asked. [`service`](mod@service): what a datagram says, and what is answered to it.
//! - [`load`]: the load generator. [`mmsg`]: many datagrams by one system call, for it and for the floors.
//! - The servers, one file each; `floor` has those on epoll.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use crate::golang;
use crate::process::ServerProcess;
use crate::servers::Role;
use crate::sys;

mod duopoll;
mod floor;
pub mod load;
pub mod mmsg;
#[cfg(feature = "quinn-udp")]
mod quinn;
pub mod service;
pub mod shape;
#[cfg(feature = "tokio")]
mod tokio;
mod uring;

use shape::{Ask, Shape};

/// What a server is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddrV4,
    /// What comes.
    pub ask: Ask,
    /// Bytes of a datagram.
    pub bytes: usize,
}

/// How a server is started.
#[derive(Clone, Copy)]
pub enum Start {
    /// A function of this executable; it returns only on failure.
    Function(fn(&Options) -> io::Result<()>),
    /// The Go module.
    Go,
}

/// A row of the table of servers.
#[derive(Clone, Copy)]
pub struct Server {
    /// The name on the command line and in the report.
    pub name: &'static str,
    /// What it stands for, where it is not the yardstick.
    pub role: Role,
    /// How it is started.
    pub start: Start,
    /// Whether it can be asked that.
    pub serves: fn(Ask) -> bool,
    /// One line for the list.
    pub about: &'static str,
}

/// The servers of this build, in the order in which a round runs them.
pub fn all() -> &'static [Server] {
    const SERVERS: &[Server] = &[
        Server {
            name: "floor-mmsg",
            role: Role::Floor,
            start: Start::Function(floor::serve::<false, false>),
            serves: |_| true,
            about: "written by hand on epoll, `recvmmsg` and `sendmmsg` of up to 64",
        },
        Server {
            name: "floor-mmsg-gso",
            role: Role::Floor,
            start: Start::Function(floor::serve::<false, true>),
            // It would answer next to nothing.
            serves: |ask| ask != Ask::Receive,
            about: "the same, replies of one size to one peer in a single send (UDP_SEGMENT)",
        },
        Server {
            name: "floor-gro",
            role: Role::Floor,
            start: Start::Function(floor::serve::<true, true>),
            serves: |ask| ask == Ask::Bulk,
            about: "the same, and what comes together is received together (UDP_GRO)",
        },
        Server {
            name: "floor-uring",
            role: Role::Floor,
            start: Start::Function(uring::serve),
            serves: |_| true,
            about: "written by hand on io_uring, multishot receive, one `sendmmsg` a turn; bulk by UDP_GRO and UDP_SEGMENT",
        },
        #[cfg(feature = "tokio")]
        Server {
            name: "tokio",
            role: Role::Peer,
            start: Start::Function(tokio::serve),
            serves: |_| true,
            about: "tokio's UdpSocket, current-thread runtime",
        },
        #[cfg(feature = "quinn-udp")]
        Server {
            name: "quinn-udp",
            role: Role::Peer,
            start: Start::Function(quinn::serve),
            serves: |_| true,
            about: "quinn-udp on tokio's current-thread runtime",
        },
        Server {
            name: "duopoll-epoll",
            role: Role::Ours,
            start: Start::Function(duopoll::epoll),
            serves: |_| true,
            about: "this project's UdpSocket on epoll",
        },
        Server {
            name: "duopoll-uring",
            role: Role::Ours,
            start: Start::Function(duopoll::uring),
            serves: |_| true,
            about: "this project's UdpSocket on io_uring",
        },
        Server {
            name: "go",
            role: Role::Peer,
            start: Start::Go,
            serves: |_| true,
            about: "Go's net package, GOMAXPROCS=1",
        },
    ];
    SERVERS
}

/// The server of that name.
pub fn find(name: &str) -> Option<&'static Server> {
    all().iter().find(|server| server.name == name)
}

/// The server that every ratio, and the peak of an open loop, refers to.
pub fn yardstick(shape: &Shape) -> &'static str {
    if shape.ask == Ask::Bulk { "floor-gro" } else { "floor-mmsg" }
}

/// Starts a server in a process of its own: as `program`, or as the Go servers.
pub fn start(
    program: &Path,
    go: Option<&Path>,
    server: &Server,
    options: &Options,
    core: usize,
) -> io::Result<ServerProcess> {
    let command = match server.start {
        Start::Function(_) => {
            let mut command = Command::new(program);
            command.args(["udp", server.name, "--listen", &options.listen.to_string()]).args([
                "--ask",
                options.ask.name(),
                "--bytes",
                &options.bytes.to_string(),
            ]);
            command
        }
        Start::Go => {
            let missing = || io::Error::other("the Go servers are not built");
            golang::udp(go.ok_or_else(missing)?, options)
        }
    };
    let greeting = service::header(service::GREETING, 1);
    ServerProcess::start_datagrams(command, core, options.listen, &greeting)
}

/// What a receive buffer should hold: all that is under way at full load.
const RECEIVE_BYTES: libc::c_int = 16 << 20;

/// A non-blocking socket with room for all that is under way, as far as the kernel allows.
pub fn bind(addr: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(addr)?;
    socket.set_nonblocking(true)?;
    let set = |name| sys::set_option(socket.as_fd(), libc::SOL_SOCKET, name, RECEIVE_BYTES);
    // Above `net.core.rmem_max` needs CAP_NET_ADMIN.
    set(libc::SO_RCVBUFFORCE).or_else(|_| set(libc::SO_RCVBUF))?;
    Ok(socket)
}
