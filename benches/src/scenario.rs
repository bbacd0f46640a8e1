//! What is measured: the shape of the load, each under a name.

use crate::quic;
use crate::udp;
use crate::web;
use crate::web::shape::{Ask, Shape as WebShape};

/// One line of the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// The name on the command line, such as `echo-64x100`.
    pub name: String,
    /// The first part of the name.
    pub group: &'static str,
    /// One line for the report.
    pub title: String,
    /// What is done.
    pub work: Work,
}

/// What a scenario does.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Our own load generator drives an echo server.
    Load(Shape),
    /// `redis-benchmark` drives a RESP server.
    Resp {
        /// The test's name there.
        command: &'static str,
        /// Requests in a pipeline.
        pipeline: usize,
    },
    /// Our own load generator drives an echo server through a proxy.
    Proxy {
        /// The load.
        shape: Shape,
        /// Threads of the proxy; more than one run wherever the kernel wants.
        threads: usize,
    },
    /// A load generator of datagrams drives a server of them.
    Udp(udp::shape::Shape),
    /// A load generator of QUIC drives a server of it.
    Quic(quic::shape::Shape),
    /// `wrk` or `h2load` drives a web server.
    Web(web::shape::Shape),
}

/// The shape of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Unix sockets instead of TCP.
    pub unix: bool,
    /// How requests follow each other.
    pub pace: Pace,
    /// Busy connections.
    pub connections: usize,
    /// Silent connections beside them.
    pub idle: usize,
    /// Connections beside them that send a byte a second each. Each round then has a run without them too, for the
    /// ratio of the latencies.
    pub slow: usize,
    /// Bytes of a message, its header included.
    pub message: usize,
    /// Whether a length header leads the message.
    pub framed: bool,
    /// Whether the memory is read again after the close.
    pub settle: bool,
    /// Whether clients speak TLS, which only proxies do.
    pub tls: bool,
}

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// The next request follows the answer.
    Closed {
        /// Outstanding requests a connection.
        depth: usize,
    },
    /// A fixed rate, in percent of what the yardstick serves in a closed loop.
    Open {
        /// The percentage.
        percent: u32,
    },
    /// A connection for each request.
    Churn,
}

impl Shape {
    fn echo(message: usize, connections: usize) -> Self {
        Shape {
            unix: false,
            pace: Pace::Closed { depth: 1 },
            connections,
            idle: 0,
            slow: 0,
            message,
            framed: false,
            settle: message >= 64 << 10,
            tls: false,
        }
    }

    /// Bytes that arrive at the server together.
    pub fn burst_bytes(&self) -> usize {
        match self.pace {
            Pace::Closed { depth } => self.message * depth,
            Pace::Open { .. } | Pace::Churn => self.message,
        }
    }

    /// The same without the slow senders.
    pub fn alone(&self) -> Shape {
        Shape { slow: 0, ..self.clone() }
    }

    /// The closed loop whose throughput is the peak of an open loop.
    pub fn peak(&self) -> Shape {
        Shape { pace: Pace::Closed { depth: 1 }, settle: false, ..self.clone() }
    }
}

const SIZES: [(usize, &str, &str); 6] = [
    (64, "64", "64 B"),
    (1 << 10, "1k", "1 KiB"),
    (4 << 10, "4k", "4 KiB"),
    (16 << 10, "16k", "16 KiB"),
    (64 << 10, "64k", "64 KiB"),
    (1 << 20, "1m", "1 MiB"),
];
const CONNECTIONS: [usize; 3] = [1, 100, 1000];

/// Every scenario, in the order of the report.
pub fn all() -> Vec<Scenario> {
    let mut list = Vec::new();
    let mut add = |group: &'static str, rest: String, title: String, work: Work| {
        let name = if rest.is_empty() { group.to_owned() } else { format!("{group}-{rest}") };
        list.push(Scenario { name, group, title, work });
    };
    let plural = |count: usize| {
        if count == 1 { "connection" } else { "connections" }
    };

    for (bytes, short, long) in SIZES {
        for count in CONNECTIONS {
            let title = format!("Echo of {long} on {count} {}", plural(count));
            add("echo", format!("{short}x{count}"), title, Work::Load(Shape::echo(bytes, count)));
        }
    }
    for (bytes, short, long) in [SIZES[0], SIZES[1], SIZES[3]] {
        for count in [100, 1000] {
            for percent in [25, 50, 75] {
                let shape = Shape {
                    pace: Pace::Open { percent },
                    settle: false,
                    ..Shape::echo(bytes, count)
                };
                let title =
                    format!("Open loop, {long} on {count} connections, {percent} % of peak");
                add("open", format!("{short}x{count}-{percent}"), title, Work::Load(shape));
            }
        }
    }
    for (bytes, short, long) in SIZES {
        for count in CONNECTIONS {
            let shape = Shape { unix: true, ..Shape::echo(bytes, count) };
            let title = format!("Unix sockets, echo of {long} on {count} {}", plural(count));
            add("unix", format!("{short}x{count}"), title, Work::Load(shape));
        }
    }
    for percent in [25, 50, 75] {
        let pace = Pace::Open { percent };
        let shape = Shape { unix: true, pace, ..Shape::echo(64, 100) };
        let title =
            format!("Unix sockets, open loop, 64 B on 100 connections, {percent} % of peak");
        add("unix", format!("open-64x100-{percent}"), title, Work::Load(shape));
    }
    let rpc = Shape { framed: true, ..Shape::echo(4 + 1024, 100) };
    add(
        "rpc",
        "long".into(),
        "RPC of 1 KiB with a length header on 100 long connections".into(),
        Work::Load(rpc.clone()),
    );
    add(
        "rpc",
        "idle".into(),
        "The same beside 400 idle connections".into(),
        Work::Load(Shape { idle: 400, ..rpc.clone() }),
    );
    add(
        "rpc",
        "mux".into(),
        "The same, 100 requests multiplexed on 4 connections".into(),
        Work::Load(Shape { connections: 4, pace: Pace::Closed { depth: 25 }, ..rpc }),
    );
    for pipeline in [1, 16, 64] {
        for (short, command) in [("ping", "ping_mbulk"), ("get", "get"), ("set", "set")] {
            let title = format!("RESP {} by redis-benchmark -P {pipeline}", short.to_uppercase());
            add("resp", format!("{short}-p{pipeline}"), title, Work::Resp { command, pipeline });
        }
    }
    add(
        "churn",
        String::new(),
        "Short connections: connect, echo of 64 B, close; 64 at a time".into(),
        Work::Load(Shape { pace: Pace::Churn, ..Shape::echo(64, 64) }),
    );
    for idle in [0, 5_000, 15_000] {
        add(
            "idle",
            idle.to_string(),
            format!("Echo of 64 B on 100 connections beside {idle} idle ones"),
            Work::Load(Shape { idle, settle: true, ..Shape::echo(64, 100) }),
        );
    }
    add(
        "slow",
        String::new(),
        "Echo of 64 B on 50 connections beside 5000 that send a byte a second each".into(),
        Work::Load(Shape { slow: 5_000, ..Shape::echo(64, 50) }),
    );
    for (rest, title, shape) in proxy_shapes() {
        let title = format!("Proxy: {title}");
        add("proxy", rest.into(), title.clone(), Work::Proxy { shape: shape.clone(), threads: 1 });
        if matches!(rest, "64x64" | "64kx16") {
            let work = Work::Proxy { shape, threads: 2 };
            add("proxy", format!("{rest}-2t"), format!("{title}, two threads"), work);
        }
    }
    for (rest, title, shape) in udp_shapes() {
        let title = format!("UDP, {title}; a request is a datagram");
        add("udp", rest, title, Work::Udp(shape));
    }
    for (rest, title, shape) in quic_shapes() {
        add("quic", rest.into(), format!("QUIC, {title}"), Work::Quic(shape));
    }
    for (group, rest, title, shape) in web_shapes() {
        add(group, rest.into(), title.into(), Work::Web(shape));
    }
    list
}

/// The scenarios of proxies.
fn proxy_shapes() -> Vec<(&'static str, &'static str, Shape)> {
    let echo = |message, connections| Shape { settle: false, ..Shape::echo(message, connections) };
    let tls = |message, connections| Shape { tls: true, ..echo(message, connections) };
    vec![
        ("64x64", "64 B on 64 connections", echo(64, 64)),
        ("64x1000", "64 B on 1000 connections", echo(64, 1000)),
        ("1kx100", "1 KiB on 100 connections", echo(1 << 10, 100)),
        ("64kx16", "64 KiB on 16 connections", echo(64 << 10, 16)),
        ("1mx4", "1 MiB on 4 connections", echo(1 << 20, 4)),
        (
            "churn",
            "a connection for each 64 B, 64 at a time",
            Shape { pace: Pace::Churn, ..echo(64, 64) },
        ),
        (
            "idle",
            "64 B on 16 connections beside 5000 idle ones",
            Shape { idle: 5_000, ..echo(64, 16) },
        ),
        ("tls-64x64", "clients with TLS 1.3, 64 B on 64 connections", tls(64, 64)),
        ("tls-1kx100", "clients with TLS 1.3, 1 KiB on 100 connections", tls(1 << 10, 100)),
        ("tls-64kx16", "clients with TLS 1.3, 64 KiB on 16 connections", tls(64 << 10, 16)),
        (
            "tls-churn",
            "clients with TLS 1.3, a connection and a full handshake for each 64 B, 64 at a time",
            Shape { pace: Pace::Churn, ..tls(64, 64) },
        ),
    ]
}

/// The scenarios of datagrams.
fn udp_shapes() -> Vec<(String, String, udp::shape::Shape)> {
    use udp::shape::{Ask, Shape};
    let mut list = Vec::new();
    for percent in [None, Some(50)] {
        for bytes in [64, 1200] {
            for peers in [1, 100] {
                let of = if peers == 1 { "1 peer".into() } else { format!("{peers} peers") };
                let shape = Shape { percent, ..Shape::closed(Ask::Echo, bytes, peers) };
                list.push(match percent {
                    None => {
                        (format!("{bytes}x{peers}"), format!("echo of {bytes} B to {of}"), shape)
                    }
                    Some(percent) => (
                        format!("open-{bytes}x{peers}-{percent}"),
                        format!("open loop, echo of {bytes} B to {of}, {percent} % of peak"),
                        shape,
                    ),
                });
            }
        }
    }
    for (ask, what) in [(Ask::Receive, "receiving only"), (Ask::Send, "sending only")] {
        for bytes in [64, 1200] {
            let name = format!("{}-{bytes}", ask.name());
            let title = format!("{what}, {bytes} B, 1 peer");
            list.push((name, title, Shape::closed(ask, bytes, 1)));
        }
    }
    let title = "echo of trains of 51 datagrams of 1200 B, 1 peer".to_owned();
    list.push(("bulk".to_owned(), title, Shape::closed(Ask::Bulk, 1200, 1)));
    list
}

/// The scenarios of QUIC.
#[rustfmt::skip]
fn quic_shapes() -> Vec<(&'static str, &'static str, quic::shape::Shape)> {
    use quic::shape::{Ask, Shape};
    let small = Shape::echo(64, 16, 8);
    vec![
        ("64x16", "64 B there and back on a stream each, 16 connections with 8 of them", small.clone()),
        ("64x1000", "the same, 1000 connections with one", Shape::echo(64, 1000, 1)),
        ("send", "the server sends 64 MiB a stream on 4 connections; a request is 1 MiB", Shape::bulk(Ask::Send)),
        ("receive", "the server receives 64 MiB a stream on 4 connections; a request is 1 MiB", Shape::bulk(Ask::Receive)),
        ("64x16-2t", "64 B there and back on a stream each, 16 connections with 8 of them, two threads", small.on_two_threads()),
    ]
}

/// The scenarios of web servers.
#[rustfmt::skip]
fn web_shapes() -> Vec<(&'static str, &'static str, &'static str, WebShape)> {
    let (http1, http2) = (WebShape::http1, WebShape::http2);
    let pipelined = WebShape { streams: 16, ..http1(Ask::Hello, 64) };
    let silent = |connections| WebShape { silent: true, ..http1(Ask::Hello, connections) };
    vec![
        ("http", "hello-64", "HTTP/1.1, \"hello\" on 64 connections", http1(Ask::Hello, 64)),
        ("http", "hello-1000", "HTTP/1.1, \"hello\" on 1000 connections", http1(Ask::Hello, 1000)),
        ("http", "hello-p16", "HTTP/1.1, \"hello\" on 64 connections, 16 requests pipelined", pipelined),
        ("http", "json-64", "HTTP/1.1, 1 KiB of JSON by axum on 64 connections", http1(Ask::Json, 64)),
        ("http", "get-bytes", "HTTP/1.1, answers of 1 MiB in one piece on 8 connections", http1(Ask::Bytes, 8)),
        ("http", "get-pieces", "HTTP/1.1, answers of 1 MiB in pieces, each copied, on 8 connections", http1(Ask::Pieces, 8)),
        ("http", "post", "HTTP/1.1, requests with 1 MiB on 8 connections", http1(Ask::Upload, 8)),
        ("http", "idle", "HTTP/1.1, 5000 connections that ask once, 1000 a second; a request is a connection", silent(5000)),
        ("http", "hello-64-2t", "HTTP/1.1, \"hello\" on 64 connections, two threads", http1(Ask::Hello, 64).on_two_threads()),
        ("http", "json-64-2t", "HTTP/1.1, 1 KiB of JSON by axum on 64 connections, two threads", http1(Ask::Json, 64).on_two_threads()),
        ("h2", "16x16", "HTTP/2, \"hello\" on 16 connections with 16 streams", http2(Ask::Hello, 16, 16)),
        ("h2", "get-bytes", "HTTP/2, answers of 1 MiB in one piece on 4 connections with 2 streams", http2(Ask::Bytes, 4, 2)),
        ("h2", "get-pieces", "HTTP/2, answers of 1 MiB in pieces, each copied, on 4 connections with 2 streams", http2(Ask::Pieces, 4, 2)),
        ("h2", "post", "HTTP/2, requests with 1 MiB on 4 connections with 2 streams", http2(Ask::Upload, 4, 2)),
        ("h2", "16x16-2t", "HTTP/2, \"hello\" on 16 connections with 16 streams, two threads", http2(Ask::Hello, 16, 16).on_two_threads()),
        ("grpc", "16x16", "gRPC calls on 16 connections with 16 streams", http2(Ask::Unary, 16, 16)),
        ("grpc", "64x1", "gRPC calls on 64 connections, one at a time", http2(Ask::Unary, 64, 1)),
        ("grpc", "messages", "gRPC, calls answered with 1000 messages on 4 connections with 4 streams; a request is a message", http2(Ask::Messages, 4, 4)),
        ("grpc", "16x16-2t", "gRPC calls on 16 connections with 16 streams, two threads", http2(Ask::Unary, 16, 16).on_two_threads()),
        ("grpc", "64x1-2t", "gRPC calls on 64 connections, one at a time, two threads", http2(Ask::Unary, 64, 1).on_two_threads()),
        ("tls", "http-64", "HTTP/1.1 over TLS 1.3, \"hello\" on 64 connections", http1(Ask::Hello, 64).over_tls()),
        ("tls", "h2-16x16", "HTTP/2 over TLS 1.3, \"hello\" on 16 connections with 16 streams", http2(Ask::Hello, 16, 16).over_tls()),
        ("tls", "grpc-16x16", "gRPC calls over TLS 1.3 on 16 connections with 16 streams", http2(Ask::Unary, 16, 16).over_tls()),
        ("tls", "get-bytes", "HTTP/1.1 over TLS 1.3, answers of 1 MiB in one piece on 8 connections", http1(Ask::Bytes, 8).over_tls()),
        ("tls", "get-pieces", "HTTP/1.1 over TLS 1.3, answers of 1 MiB in pieces, each copied, on 8 connections", http1(Ask::Pieces, 8).over_tls()),
        ("tls", "post", "HTTP/1.1 over TLS 1.3, requests with 1 MiB on 8 connections", http1(Ask::Upload, 8).over_tls()),
        ("tls", "idle", "HTTP/1.1 over TLS 1.3, 2000 connections that ask once, 1000 a second; a request is a connection", silent(2000).over_tls()),
        ("tls", "http-64-2t", "HTTP/1.1 over TLS 1.3, \"hello\" on 64 connections, two threads", http1(Ask::Hello, 64).over_tls().on_two_threads()),
        ("tls", "h2-16x16-2t", "HTTP/2 over TLS 1.3, \"hello\" on 16 connections with 16 streams, two threads", http2(Ask::Hello, 16, 16).over_tls().on_two_threads()),
        ("tls", "grpc-16x16-2t", "gRPC calls over TLS 1.3 on 16 connections with 16 streams, two threads", http2(Ask::Unary, 16, 16).over_tls().on_two_threads()),
    ]
}

/// Whether a pattern from the command line means this scenario: a name, a group, or a name with `*`
/// for any run of characters.
pub fn matches(scenario: &Scenario, pattern: &str) -> bool {
    scenario.name == pattern || scenario.group == pattern || glob(pattern, &scenario.name)
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text
            .strip_prefix(head)
            .is_some_and(|rest| (0..=rest.len()).any(|skip| glob(tail, &rest[skip..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = all().into_iter().map(|scenario| scenario.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn patterns_match_names_groups_and_globs() {
        let scenarios = all();
        let count = |pattern| scenarios.iter().filter(|s| matches(s, pattern)).count();
        assert_eq!(count("echo-64x100"), 1);
        assert_eq!(count("echo"), 18);
        assert_eq!(count("echo-64k*"), 3);
        assert_eq!(count("*x1000"), 14);
        assert_eq!(count("nothing"), 0);
    }
}
