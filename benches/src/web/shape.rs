//! What is asked of a web server, in which shape.

use std::sync::LazyLock;

use serde::Serialize;

/// The shape of a load on a web server.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Whether HTTP/2 is spoken; HTTP/1.1 otherwise.
    pub http2: bool,
    /// Whether it is spoken over TLS.
    pub tls: bool,
    /// What each request asks for.
    pub ask: Ask,
    /// Connections.
    pub connections: usize,
    /// Outstanding requests a connection: streams of HTTP/2, or pipelined ones of HTTP/1.1.
    pub streams: usize,
    /// Threads of the server and of the load generator. One thread each is pinned, more are not.
    pub threads: usize,
    /// Whether each connection asks once and is silent from then on, for the memory that it holds.
    pub silent: bool,
}

impl Shape {
    /// One of HTTP/1.1 on one thread.
    pub fn http1(ask: Ask, connections: usize) -> Self {
        Shape { http2: false, tls: false, ask, connections, streams: 1, threads: 1, silent: false }
    }

    /// One of HTTP/2 on one thread.
    pub fn http2(ask: Ask, connections: usize, streams: usize) -> Self {
        Shape { http2: true, streams, ..Shape::http1(ask, connections) }
    }

    /// The same over TLS.
    pub fn over_tls(self) -> Self {
        Shape { tls: true, ..self }
    }

    /// The same with two threads at each end.
    pub fn on_two_threads(self) -> Self {
        Shape { threads: 2, ..self }
    }

    /// Connections that stay silent, for the report.
    pub fn idle(&self) -> usize {
        if self.silent { self.connections } else { 0 }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A few bytes of text.
    Hello,
    /// [`JSON_BYTES`] of JSON, made anew for each answer.
    Json,
    /// [`LARGE_BYTES`] that lie ready in one piece.
    Bytes,
    /// [`LARGE_BYTES`] in pieces of [`PIECE_BYTES`], each of which is copied for the answer.
    Pieces,
    /// To take [`LARGE_BYTES`], and to say how many have come.
    Upload,
    /// A gRPC call: a message with [`PAYLOAD_BYTES`], which comes back.
    Unary,
    /// A gRPC call that is answered with [`MESSAGES`] messages.
    Messages,
}

/// The short text.
pub const HELLO: &str = "hello\n";
/// Length of the JSON answer.
pub const JSON_BYTES: usize = 1 << 10;
/// Length of a large body.
pub const LARGE_BYTES: usize = 1 << 20;
/// Length of a piece of a streamed body.
pub const PIECE_BYTES: usize = 16 << 10;
/// Bytes in a gRPC message.
pub const PAYLOAD_BYTES: usize = 64;
/// Messages in a stream of them.
pub const MESSAGES: usize = 1000;

/// A message as gRPC sends it: not compressed, its length, then one field of bytes with its own length.
const FRAME_BYTES: usize = 5 + 2 + PAYLOAD_BYTES;

impl Ask {
    /// Where it is asked.
    pub fn path(self) -> &'static str {
        match self {
            Ask::Hello => "/hello",
            Ask::Json => "/json",
            Ask::Bytes => "/bytes",
            Ask::Pieces => "/pieces",
            Ask::Upload => "/upload",
            Ask::Unary => "/duopoll.Bench/Unary",
            Ask::Messages => "/duopoll.Bench/Messages",
        }
    }

    /// Which service answers it.
    pub fn app(self) -> App {
        match self {
            Ask::Hello | Ask::Bytes | Ask::Pieces | Ask::Upload => App::Plain,
            Ask::Json => App::Json,
            Ask::Unary | Ask::Messages => App::Grpc,
        }
    }

    /// What is posted; nothing for a GET.
    pub fn posts(self) -> Option<Vec<u8>> {
        match self {
            Ask::Upload => Some(vec![b'x'; LARGE_BYTES]),
            Ask::Unary | Ask::Messages => Some(frame()),
            Ask::Hello | Ask::Json | Ask::Bytes | Ask::Pieces => None,
        }
    }

    /// The body of the right answer.
    pub fn answer(self) -> Vec<u8> {
        match self {
            Ask::Hello => HELLO.into(),
            Ask::Json => serde_json::to_vec(&*CATALOGUE).unwrap_or_default(),
            Ask::Bytes | Ask::Pieces => vec![b'x'; LARGE_BYTES],
            Ask::Upload => LARGE_BYTES.to_string().into(),
            Ask::Unary => frame(),
            Ask::Messages => frame().repeat(MESSAGES),
        }
    }

    /// Requests that an answer counts for: a stream of messages is many.
    pub fn counts(self) -> u64 {
        if self == Ask::Messages { MESSAGES as u64 } else { 1 }
    }
}

/// A gRPC message with the payload.
fn frame() -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend((2 + PAYLOAD_BYTES as u32).to_be_bytes());
    // Field 1, of a length that fits in a byte.
    bytes.extend([0x0a, PAYLOAD_BYTES as u8]);
    bytes.resize(FRAME_BYTES, b'x');
    bytes
}

/// The services that a server can be started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    /// A function for hyper.
    Plain,
    /// A router of axum.
    Json,
    /// A service of tonic.
    Grpc,
}

impl App {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            App::Plain => "plain",
            App::Json => "json",
            App::Grpc => "grpc",
        }
    }

    /// The one of that name.
    pub fn find(name: &str) -> Option<App> {
        [App::Plain, App::Json, App::Grpc].into_iter().find(|app| app.name() == name)
    }
}

/// What the JSON answer is made of.
#[derive(Serialize)]
pub struct Catalogue {
    total: usize,
    items: Vec<Item>,
}

#[derive(Serialize)]
struct Item {
    id: usize,
    name: &'static str,
    note: &'static str,
    price_cents: usize,
    tags: [&'static str; 2],
    available: bool,
}

/// The same for every answer; the JSON is made anew.
pub static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| Catalogue {
    total: 8,
    items: (0..8)
        .map(|i| Item {
            id: 100 + i,
            name: "teapot",
            note: match i {
                0 => "short and stout, of purple enamel",
                _ => "short and stout, of enamel",
            },
            price_cents: 1990 + i,
            tags: ["kitchen", "tea"],
            available: i % 2 == 0,
        })
        .collect(),
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_length_that_it_is_said_to_have() {
        assert_eq!(Ask::Json.answer().len(), JSON_BYTES);
    }

    #[test]
    fn a_message_is_framed_as_grpc_does() {
        let frame = frame();
        assert_eq!(frame.len(), FRAME_BYTES);
        assert_eq!(frame[..7], [0, 0, 0, 0, 66, 0x0a, 64]);
        assert_eq!(Ask::Messages.answer().len(), FRAME_BYTES * MESSAGES);
    }
}
