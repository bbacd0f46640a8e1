//! The load generator: one thread, one epoll instance, plain system calls.
//!
//! It runs in a process of its own, on a core of its own, and reads the server's CPU clock itself at
//! both ends of the measured window, so that the window of the requests and that of the CPU time are
//! the same.
//!
//! A run: greet (every connection, idle and slow ones included, echoes one message, which is compared byte by
//! byte), warm up, measure, close.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize};

use crate::address::Address;
use crate::interrupts;
use crate::process;
use crate::sys;

mod churn;
mod slow;
mod steady;
mod stream;
#[cfg(feature = "http")]
mod tls;

use stream::{Stream, Target};

/// Connections are greeted in groups of this size, so that no accept queue overflows.
const GREET_GROUP: usize = 64;
/// A greeting is no longer than this: it is written before the echo is read, and has to fit in the
/// socket buffers.
const GREET_BYTES_MAX: usize = 16 << 10;
/// How long a server may take to answer a greeting.
const GREET_TIMEOUT: Duration = Duration::from_secs(10);

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Each connection keeps `depth` requests outstanding: the next goes out when an answer is in.
    Closed {
        /// Outstanding requests a connection.
        depth: usize,
    },
    /// Requests fall due at a fixed rate, whatever the server does; latency counts from then. A
    /// connection has one outstanding, later ones wait their turn with the clock running.
    Open {
        /// Requests a second, over all connections.
        rate: f64,
    },
    /// Every request is a connection of its own: connect, send, receive, close.
    Churn,
}

/// One run of the load generator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The server's address.
    pub target: String,
    /// The folder of the server's certificate, for TLS.
    pub tls: Option<PathBuf>,
    /// The server's process, for its CPU clock and memory.
    pub server_pid: u32,
    /// How requests follow each other.
    pub mode: Mode,
    /// Busy connections; for churn, how many are open at a time.
    pub connections: usize,
    /// Further connections that have talked once and are silent since.
    pub idle: usize,
    /// Further connections that send a byte a second each, whose echoes are received and not counted.
    pub slow: usize,
    /// Bytes of a message, its header included.
    pub message: usize,
    /// Whether the message starts with its length: four bytes, big-endian, themselves not counted.
    pub framed: bool,
    /// Time before the measured window, in milliseconds.
    pub warm_ms: u64,
    /// The measured window, in milliseconds.
    pub measure_ms: u64,
    /// How long to wait after the close before the memory is read again; 0 does not look.
    pub settle_ms: u64,
    /// Compare every received byte. Costs the client, for tests.
    pub verify: bool,
}

/// What a run found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Answers in the measured window.
    pub requests: u64,
    /// Answers of the whole run, greetings included.
    pub requests_in_all: u64,
    /// Length of the measured window in seconds.
    pub seconds: f64,
    /// CPU time of the server in the window, in nanoseconds.
    pub server_cpu_ns: u64,
    /// CPU time of the load generator in the window, in nanoseconds.
    pub client_cpu_ns: u64,
    /// Latencies in microseconds.
    #[serde(deserialize_with = "number_or_none")]
    pub p50_us: f64,
    /// The 99th percentile.
    #[serde(deserialize_with = "number_or_none")]
    pub p99_us: f64,
    /// The 99.9th percentile.
    #[serde(deserialize_with = "number_or_none")]
    pub p999_us: f64,
    /// The longest.
    #[serde(deserialize_with = "number_or_none")]
    pub max_us: f64,
    /// Datagrams that were sent and never came, over the whole run; none where there are no datagrams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Bytes that the slow senders sent and received back, over the whole run.
    pub slow_bytes: u64,
    /// Resident memory of the server in KiB before the first connection.
    pub rss_start_kib: u64,
    /// With the idle connections open, before the busy ones.
    pub rss_idle_kib: u64,
    /// At the end of the window.
    pub rss_busy_kib: u64,
    /// After the close, if the run settled.
    pub rss_settled_kib: Option<u64>,
}

/// What JSON has no number for is NaN.
fn number_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// Runs a specification to its end.
pub fn run(spec: &Spec) -> io::Result<Outcome> {
    sys::raise_descriptor_limit()?;
    let address = spec.target.parse().map_err(io::Error::other)?;
    let target = Target::new(address, spec.tls.as_deref())?;
    let payload = Payload::new(spec.message, spec.framed);
    let mut outcome =
        Outcome { rss_start_kib: process::rss_kib(spec.server_pid)?, ..Outcome::default() };

    let idle = open(&target, spec.idle, &payload)?;
    if !idle.is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
    outcome.rss_idle_kib = process::rss_kib(spec.server_pid)?;
    outcome.requests_in_all += idle.len() as u64;

    let mut window = Window::new(spec.server_pid, spec.warm_ms, spec.measure_ms)?;
    match spec.mode {
        Mode::Churn => churn::run(spec, &target, &payload, &mut window)?,
        Mode::Closed { .. } | Mode::Open { .. } => {
            let slow = open(&target, spec.slow, &payload)?;
            let connections = open(&target, spec.connections, &payload)?;
            outcome.requests_in_all += (slow.len() + connections.len()) as u64;
            outcome.slow_bytes = steady::run(spec, connections, slow, &payload, &mut window)?;
            outcome.requests_in_all += outcome.slow_bytes;
        }
    }
    drop(idle);
    window.fill(&mut outcome);
    if spec.settle_ms > 0 {
        std::thread::sleep(Duration::from_millis(spec.settle_ms));
        outcome.rss_settled_kib = Some(process::rss_kib(spec.server_pid)?);
    }
    Ok(outcome)
}

/// The bytes of a message, over and over.
struct Payload {
    message: usize,
    bytes: Vec<u8>,
}

impl Payload {
    /// Repetitions, so that several messages can go out in one call.
    const BYTES_MIN: usize = 256 << 10;

    fn new(message: usize, framed: bool) -> Self {
        let mut one: Vec<u8> = (0..message).map(|i| (i as u32 * 31 + 7) as u8).collect();
        if framed {
            let length = u32::try_from(message - 4).unwrap_or(u32::MAX);
            one[..4].copy_from_slice(&length.to_be_bytes());
        }
        let count = 2 + Self::BYTES_MIN / message;
        Payload { message, bytes: one.repeat(count) }
    }

    /// Up to `len` bytes of the stream of messages, from a position in it.
    #[inline]
    fn at(&self, position: u64, len: usize) -> &[u8] {
        let start = (position % self.message as u64) as usize;
        let end = self.bytes.len().min(start + len);
        &self.bytes[start..end]
    }

    /// Whether `received` is what the stream of messages has at a position.
    fn matches(&self, mut position: u64, mut received: &[u8]) -> bool {
        while !received.is_empty() {
            let expected = self.at(position, received.len());
            if &received[..expected.len()] != expected {
                return false;
            }
            position += expected.len() as u64;
            received = &received[expected.len()..];
        }
        true
    }
}

/// Opens connections and greets the server on each.
fn open(target: &Target, count: usize, payload: &Payload) -> io::Result<Vec<Stream>> {
    let mut connections = Vec::with_capacity(count);
    while connections.len() < count {
        let group = GREET_GROUP.min(count - connections.len());
        for _ in 0..group {
            // One source address has 28,000 ports for one server; the idle ones need most of them.
            let mut connection = target.connect(Ipv4Addr::LOCALHOST)?;
            // Thousands of connections a run would otherwise wait in TIME_WAIT into the next one.
            if let Address::Tcp(_) = target.address {
                sys::set_abortive_close(connection.as_fd())?;
            }
            greet(&mut connection, payload)?;
            connections.push(connection);
        }
    }
    Ok(connections)
}

/// Sends a message and waits for its echo, blocking.
fn greet(connection: &mut Stream, payload: &Payload) -> io::Result<()> {
    // The type only lends its methods, which set up any stream socket.
    let socket = UnixStream::from(connection.as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(GREET_TIMEOUT))?;
    socket.set_read_timeout(Some(GREET_TIMEOUT))?;
    let message = payload.at(0, payload.message.min(GREET_BYTES_MAX));
    // A framed server answers whole frames only, and those fit.
    let late = |error: io::Error| io::Error::new(error.kind(), format!("greeting: {error}"));
    connection.write_all(message).map_err(late)?;
    let mut echo = vec![0; message.len()];
    connection.read_exact(&mut echo).map_err(late)?;
    if echo != message {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs"));
    }
    socket.set_nonblocking(true)
}

/// The measured window: when it starts and ends, and what happened inside.
pub(crate) struct Window {
    server_pid: u32,
    starts_ns: u64,
    ends_ns: u64,
    warm_ns: u64,
    measure_ns: u64,
    state: State,
    requests: u64,
    requests_in_all: u64,
    latencies: Histogram<u64>,
    server_cpu_ns: u64,
    client_cpu_ns: u64,
    rss_busy_kib: u64,
}

#[derive(PartialEq)]
enum State {
    Warming,
    Measuring,
    Over,
}

impl Window {
    pub(crate) fn new(server_pid: u32, warm_ms: u64, measure_ms: u64) -> io::Result<Self> {
        Ok(Window {
            server_pid,
            starts_ns: 0,
            ends_ns: 0,
            warm_ns: warm_ms * 1_000_000,
            measure_ns: measure_ms * 1_000_000,
            state: State::Warming,
            requests: 0,
            requests_in_all: 0,
            // Nanoseconds up to a minute, to three digits.
            latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3)
                .map_err(io::Error::other)?,
            server_cpu_ns: 0,
            client_cpu_ns: 0,
            rss_busy_kib: 0,
        })
    }

    /// Starts the clock of the warm-up.
    pub(crate) fn start(&mut self, now_ns: u64) {
        self.starts_ns = now_ns + self.warm_ns;
    }

    /// Looks at the clock; false when the window is over.
    #[inline]
    pub(crate) fn tick(&mut self, now_ns: u64) -> io::Result<bool> {
        match self.state {
            State::Warming if now_ns >= self.starts_ns => {
                self.server_cpu_ns = interrupts::server_cpu_time_ns(self.server_pid)?;
                self.client_cpu_ns = sys::own_cpu_time_ns()?;
                self.starts_ns = sys::now_ns();
                self.ends_ns = self.starts_ns + self.measure_ns;
                self.state = State::Measuring;
            }
            State::Measuring if now_ns >= self.ends_ns => {
                self.server_cpu_ns =
                    interrupts::server_cpu_time_ns(self.server_pid)? - self.server_cpu_ns;
                self.client_cpu_ns = sys::own_cpu_time_ns()? - self.client_cpu_ns;
                self.ends_ns = sys::now_ns();
                self.state = State::Over;
                self.rss_busy_kib = process::rss_kib(self.server_pid)?;
            }
            _ => {}
        }
        Ok(self.state != State::Over)
    }

    /// Counts an answer to a request of `since_ns`.
    #[inline]
    fn answered(&mut self, now_ns: u64, since_ns: u64) {
        self.answered_together(now_ns, since_ns, 1);
    }

    /// Counts the answers to `count` requests of `since_ns`.
    #[inline]
    pub(crate) fn answered_together(&mut self, now_ns: u64, since_ns: u64, count: u64) {
        self.requests_in_all += count;
        if self.state == State::Measuring {
            self.requests += count;
            self.latencies.saturating_record_n(now_ns.saturating_sub(since_ns), count);
        }
    }

    pub(crate) fn fill(&self, outcome: &mut Outcome) {
        let us = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1e3;
        outcome.requests = self.requests;
        outcome.requests_in_all += self.requests_in_all;
        outcome.seconds = (self.ends_ns - self.starts_ns) as f64 / 1e9;
        outcome.server_cpu_ns = self.server_cpu_ns;
        outcome.client_cpu_ns = self.client_cpu_ns;
        outcome.p50_us = us(0.50);
        outcome.p99_us = us(0.99);
        outcome.p999_us = us(0.999);
        outcome.max_us = self.latencies.max() as f64 / 1e3;
        outcome.rss_busy_kib = self.rss_busy_kib;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_one_endless_stream_of_messages() {
        let payload = Payload::new(100, true);
        assert_eq!(payload.at(0, 4), 96u32.to_be_bytes());
        assert_eq!(payload.at(100, 4), payload.at(0, 4));
        assert!(payload.matches(0, payload.at(300, 450)));
        assert!(!payload.matches(1, payload.at(0, 50)));
    }
}
