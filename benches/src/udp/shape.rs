//! What is asked of a server of datagrams.

use serde::{Deserialize, Serialize};

/// Datagrams that are acknowledged, or asked for, together.
pub const GROUP: usize = 32;
/// Datagrams that a bulk sender hands to the kernel at once: 60 KiB of 1,200 bytes.
pub const TRAIN: usize = 51;

/// What a server is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Every datagram back to its sender.
    Echo,
    /// To take them; one in 32 asks for a short answer.
    Receive,
    /// 32 of them for a short request.
    Send,
    /// Every datagram back; they come in trains of 51, sent by UDP_SEGMENT, and the generator receives with UDP_GRO.
    Bulk,
}

impl Ask {
    const ALL: [(Ask, &str); 4] =
        [(Ask::Echo, "echo"), (Ask::Receive, "receive"), (Ask::Send, "send"), (Ask::Bulk, "bulk")];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Ask::ALL.iter().find(|(ask, _)| *ask == self).map_or("", |(_, name)| name)
    }

    /// The one of that name.
    pub fn find(name: &str) -> Option<Ask> {
        Ask::ALL.iter().find(|(_, known)| *known == name).map(|(ask, _)| *ask)
    }

    /// How many datagrams a request has.
    pub fn out(self) -> usize {
        match self {
            Ask::Echo | Ask::Send => 1,
            Ask::Receive => GROUP,
            Ask::Bulk => TRAIN,
        }
    }

    /// How many datagrams answer a request.
    pub fn back(self) -> usize {
        match self {
            Ask::Echo | Ask::Receive => 1,
            Ask::Send => GROUP,
            Ask::Bulk => TRAIN,
        }
    }

    /// Requests that a peer has under way.
    pub fn depth(self) -> usize {
        match self {
            Ask::Echo => 32,
            Ask::Receive | Ask::Send => 2,
            Ask::Bulk => 4,
        }
    }
}

/// The shape of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// What is asked.
    pub ask: Ask,
    /// Bytes of a datagram.
    pub bytes: usize,
    /// Sockets that ask.
    pub peers: usize,
    /// A fixed rate, in percent of what the yardstick does in a closed loop; none is a closed loop.
    pub percent: Option<u32>,
}

impl Shape {
    /// A closed loop.
    pub fn closed(ask: Ask, bytes: usize, peers: usize) -> Shape {
        Shape { ask, bytes, peers, percent: None }
    }
}
