//! Every server of the comparison. All of them echo bytes, over TCP or a Unix socket.
//!
//! An echo of whole frames is a legal answer to a framed request, so the same servers serve the RPC
//! scenarios. Each library is used the way its own documentation shows for an echo server; none is
//! tuned beyond a read buffer that holds the message.

use std::io;

use serde::{Deserialize, Serialize};

use crate::address::Address;

pub mod classic;
#[cfg(feature = "compio")]
pub mod compio;
pub mod duopoll;
pub mod floor_epoll;
pub mod floor_uring;
#[cfg(feature = "glommio")]
pub mod glommio;
#[cfg(feature = "may")]
pub mod may;
#[cfg(feature = "monoio")]
pub mod monoio;
#[cfg(feature = "tokio")]
pub mod tokio;

/// What a server is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen.
    pub listen: Address,
    /// The number of bytes that arrive together, as far as the scenario knows it: the message, or
    /// all outstanding messages of a connection.
    pub burst_bytes: usize,
    /// Whether a length header leads each message: four bytes, big-endian, themselves not counted. The libraries then
    /// answer whole messages only. The hand-written loops look at no header, whatever the scenario.
    pub framed: bool,
}

impl Options {
    /// How the peers echo.
    pub fn echo(&self) -> Echo {
        let buffer_bytes = self.burst_bytes.next_power_of_two().clamp(4 << 10, 64 << 10);
        Echo { buffer_bytes, framed: self.framed }
    }
}

/// How the bytes of a connection are echoed by a server that reads into a buffer of its own.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    /// The read buffer of a connection: a power of two that holds the burst, 4–64 KiB.
    pub buffer_bytes: usize,
    framed: bool,
}

impl Echo {
    /// How much of what was received can be answered: all of it, or the whole messages.
    #[inline]
    pub fn answerable(&self, received: &[u8]) -> usize {
        if !self.framed {
            return received.len();
        }
        let mut end = 0;
        while let Some(header) = received[end..].first_chunk() {
            let next = end + header.len() + u32::from_be_bytes(*header) as usize;
            if next > received.len() {
                break;
            }
            end = next;
        }
        end
    }
}

/// What a server stands for in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The libraries of this project.
    Ours,
    /// The loop that every ratio refers to.
    Yardstick,
    /// A hand-written loop without any abstraction.
    Floor,
    /// Another library.
    Peer,
}

/// How a server waits for its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Readiness, by epoll.
    Epoll,
    /// Completion, by io_uring.
    Uring,
}

/// How a server is started.
#[derive(Clone, Copy)]
pub enum Start {
    /// A function of this executable; it returns only on failure.
    Function(fn(&Options) -> io::Result<()>),
    /// A server of the Go module, by the name it has there.
    Go(&'static str),
}

/// A row of the table of servers.
#[derive(Clone, Copy)]
pub struct Server {
    /// The name on the command line and in the report.
    pub name: &'static str,
    /// What it stands for.
    pub role: Role,
    /// How it waits.
    pub kind: Kind,
    /// How it is started.
    pub start: Start,
    /// One line for the report.
    pub about: &'static str,
}

impl Server {
    /// Whether it takes part in the scenarios that time allows only a few servers.
    pub fn is_core(&self) -> bool {
        self.role != Role::Peer || matches!(self.name, "tokio" | "monoio")
    }
}

/// The servers of this build, in the order in which a round runs them.
pub fn all() -> &'static [Server] {
    const SERVERS: &[Server] = &[
        Server {
            name: "classic",
            role: Role::Yardstick,
            kind: Kind::Epoll,
            start: Start::Function(classic::serve),
            about: "level-triggered epoll, recv, send at once, 1,024 events a turn",
        },
        Server {
            name: "floor-epoll",
            role: Role::Floor,
            kind: Kind::Epoll,
            start: Start::Function(floor_epoll::serve),
            about: "edge-triggered epoll, small sends kept to the end of a bounded turn",
        },
        Server {
            name: "floor-uring",
            role: Role::Floor,
            kind: Kind::Uring,
            start: Start::Function(floor_uring::serve),
            about: "io_uring, multishot receive into a buffer ring, direct descriptors",
        },
        Server {
            name: "duopoll-epoll",
            role: Role::Ours,
            kind: Kind::Epoll,
            start: Start::Function(|options| duopoll::serve(options, ::duopoll::Engine::Epoll)),
            about: "this project, epoll engine",
        },
        Server {
            name: "duopoll-uring",
            role: Role::Ours,
            kind: Kind::Uring,
            start: Start::Function(|options| duopoll::serve(options, ::duopoll::Engine::Uring)),
            about: "this project, io_uring engine",
        },
        #[cfg(feature = "tokio")]
        Server {
            name: "tokio",
            role: Role::Peer,
            kind: Kind::Epoll,
            start: Start::Function(tokio::serve_current_thread),
            about: "tokio, current-thread runtime",
        },
        #[cfg(feature = "tokio")]
        Server {
            name: "tokio-mt",
            role: Role::Peer,
            kind: Kind::Epoll,
            start: Start::Function(tokio::serve_multi_thread),
            about: "tokio, multi-thread runtime, as many workers as cores it may use",
        },
        #[cfg(feature = "monoio")]
        Server {
            name: "monoio",
            role: Role::Peer,
            kind: Kind::Uring,
            start: Start::Function(monoio::serve_uring),
            about: "monoio, io_uring driver",
        },
        #[cfg(feature = "monoio")]
        Server {
            name: "monoio-epoll",
            role: Role::Peer,
            kind: Kind::Epoll,
            start: Start::Function(monoio::serve_epoll),
            about: "monoio, legacy (epoll) driver",
        },
        #[cfg(feature = "compio")]
        Server {
            name: "compio",
            role: Role::Peer,
            kind: Kind::Uring,
            start: Start::Function(compio::serve),
            about: "compio, io_uring driver",
        },
        #[cfg(feature = "glommio")]
        Server {
            name: "glommio",
            role: Role::Peer,
            kind: Kind::Uring,
            start: Start::Function(glommio::serve),
            about: "glommio, one local executor",
        },
        #[cfg(feature = "may")]
        Server {
            name: "may",
            role: Role::Peer,
            kind: Kind::Epoll,
            start: Start::Function(may::serve),
            about: "may, stackful coroutines, one worker",
        },
        Server {
            name: "netpoll",
            role: Role::Peer,
            kind: Kind::Epoll,
            start: Start::Go("netpoll"),
            about: "cloudwego/netpoll v0.7.2 (Go), GOMAXPROCS=1",
        },
        Server {
            name: "gnet",
            role: Role::Peer,
            kind: Kind::Epoll,
            start: Start::Go("gnet"),
            about: "gnet v2.9.7 (Go), one event loop, GOMAXPROCS=1",
        },
        Server {
            name: "go-net",
            role: Role::Peer,
            kind: Kind::Epoll,
            start: Start::Go("net"),
            about: "Go's net package, a goroutine per connection, GOMAXPROCS=1",
        },
    ];
    SERVERS
}

/// The server of that name.
pub fn find(name: &str) -> Option<&'static Server> {
    all().iter().find(|server| server.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_messages_are_answered() {
        let echo = |framed| Echo { buffer_bytes: 64, framed };
        let received = [0, 0, 0, 2, b'a', b'b', 0, 0, 0, 0, 0, 0, 0, 1];
        let answerable = |len: usize| echo(true).answerable(&received[..len]);
        assert_eq!([0, 3, 5, 6, 9, 10, 14].map(answerable), [0, 0, 0, 6, 6, 10, 10]);
        assert_eq!(echo(false).answerable(&received[..5]), 5);
    }
}
