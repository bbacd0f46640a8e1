//! What is asked of a server of QUIC, in which shape.

use serde::{Deserialize, Serialize};

/// What counts for a request where there is more than one of it on a stream.
pub const PIECE_BYTES: u64 = 1 << 20;

/// What a server is asked to do with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// To give back what came.
    Echo,
    /// To take what comes, and to answer each [`PIECE_BYTES`] of it with a byte.
    Receive,
    /// To send as many bytes as it is told.
    Send,
}

impl Ask {
    const ALL: [(Ask, &str); 3] =
        [(Ask::Echo, "echo"), (Ask::Receive, "receive"), (Ask::Send, "send")];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Ask::ALL.iter().find(|(ask, _)| *ask == self).map_or("", |(_, name)| name)
    }

    /// The one of that name.
    pub fn find(name: &str) -> Option<Ask> {
        Ask::ALL.iter().find(|(_, known)| *known == name).map(|(ask, _)| *ask)
    }
}

/// The shape of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// What is asked.
    pub ask: Ask,
    /// Bytes of a stream.
    pub bytes: u64,
    /// Connections.
    pub connections: usize,
    /// Streams that a connection has under way.
    pub streams: usize,
    /// Threads of the server. With one it is pinned, and the load generator too; with more neither is.
    pub threads: usize,
}

impl Shape {
    /// Small requests to a server of one thread.
    pub fn echo(bytes: u64, connections: usize, streams: usize) -> Shape {
        Shape { ask: Ask::Echo, bytes, connections, streams, threads: 1 }
    }

    /// One long stream after the other on a few connections.
    pub fn bulk(ask: Ask) -> Shape {
        Shape { ask, ..Shape::echo(64 * PIECE_BYTES, 4, 1) }
    }

    /// The same with two threads.
    pub fn on_two_threads(self) -> Shape {
        Shape { threads: 2, ..self }
    }
}

/// How far along a stream somebody is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Bytes so far.
    pub bytes: u64,
}

impl Progress {
    /// Goes on, and says how many pieces that completes.
    #[inline]
    pub fn advance(&mut self, bytes: usize) -> u64 {
        let before = self.bytes / PIECE_BYTES;
        self.bytes += bytes as u64;
        self.bytes / PIECE_BYTES - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_counted_once() {
        let mut progress = Progress::default();
        let piece = PIECE_BYTES as usize;
        let completed = [piece - 1, 1, 1, piece, 3 * piece].map(|bytes| progress.advance(bytes));
        assert_eq!(completed, [0, 1, 0, 1, 3]);
    }
}
