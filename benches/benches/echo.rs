//! Echo on both engines: one server with one poller, one client with an epoll loop of its own, closed loop.
//!
//! The time of an iteration is that of a request. On one connection it is the latency; on 64 the latency is 64 times
//! as long, on average (Little's law).
//!
//! `cargo bench -p duopoll-benches --bench echo`

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duopoll_benches::address::Address;
use duopoll_benches::servers::duopoll;
use duopoll_benches::sys::{self, Epoll, Events};
use libc::{EPOLLET, EPOLLIN, EPOLLOUT};

mod common;

const SIZES: [(usize, &str); 3] = [(64, "64 B"), (1 << 10, "1 KiB"), (64 << 10, "64 KiB")];
const CONNECTIONS: [usize; 2] = [1, 64];
/// How long an answer may take.
const PATIENCE_MS: i32 = 10_000;

fn echo(c: &mut Criterion) {
    let engines = common::engines();
    for (bytes, size) in SIZES {
        for count in CONNECTIONS {
            let mut group = common::group(c, &format!("echo, {size}, connections: {count}"));
            group.throughput(Throughput::Elements(1));
            for (name, engine) in &engines {
                let server = common::apart(|| duopoll::start("127.0.0.1:0", *engine));
                let server = server.expect("a server");
                let address = server.local_addr().to_string().parse().expect("an address");
                let mut client = Client::connect(&address, count, bytes).expect("connections");
                client.check().expect("an echo");
                group.bench_function(BenchmarkId::from_parameter(name), |b| {
                    b.iter_custom(|requests| client.run(requests).expect("echoes"));
                });
            }
            group.finish();
        }
    }
}

/// Connections with at most one request under way each.
struct Client {
    epoll: Epoll,
    connections: Vec<Exchange>,
    message: Vec<u8>,
    buffer: Vec<u8>,
}

struct Exchange {
    socket: OwnedFd,
    /// Bytes of the request under way.
    sent: usize,
    /// Bytes of its answer.
    received: usize,
}

impl Client {
    fn connect(server: &Address, count: usize, bytes: usize) -> io::Result<Client> {
        let epoll = Epoll::new()?;
        let mut connections = Vec::new();
        for index in 0..count {
            let socket = sys::connect(server, None)?;
            epoll.add(socket.as_fd(), EPOLLIN | EPOLLOUT | EPOLLET, index as u64)?;
            connections.push(Exchange { socket, sent: bytes, received: bytes });
        }
        let message = (0..bytes).map(|i| (i * 31 + 7) as u8).collect();
        Ok(Client { epoll, connections, message, buffer: vec![0; bytes] })
    }

    /// One request on each connection, whose answer must be what was sent.
    fn check(&mut self) -> io::Result<()> {
        let mut events = self.events();
        for index in 0..self.connections.len() {
            self.buffer.fill(0);
            self.begin(index)?;
            while !self.advance(index)? {
                self.epoll.wait(&mut events, PATIENCE_MS)?;
            }
            assert!(self.buffer == self.message, "the echo differs");
        }
        Ok(())
    }

    /// So many requests, spread over the connections, and their answers.
    fn run(&mut self, requests: u64) -> io::Result<Duration> {
        let mut events = self.events();
        let start = Instant::now();
        let mut begun = requests.min(self.connections.len() as u64);
        let mut answered = 0;
        for index in 0..begun as usize {
            self.begin(index)?;
        }
        while answered < requests {
            let ready = self.epoll.wait(&mut events, PATIENCE_MS)?;
            assert_ne!(ready, 0, "no answer");
            for (_, token) in events.iter() {
                let index = token as usize;
                if self.is_idle(index) || !self.advance(index)? {
                    continue;
                }
                answered += 1;
                if begun < requests {
                    begun += 1;
                    self.begin(index)?;
                }
            }
        }
        Ok(start.elapsed())
    }

    fn events(&self) -> Events {
        Events::with_capacity(self.connections.len())
    }

    fn is_idle(&self, index: usize) -> bool {
        self.connections[index].received == self.message.len()
    }

    fn begin(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        connection.sent = 0;
        connection.received = 0;
        self.send(index)
    }

    fn send(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        while connection.sent < self.message.len() {
            match sys::send(connection.socket.as_fd(), &self.message[connection.sent..]) {
                Ok(sent) => connection.sent += sent,
                Err(error) if sys::would_block(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Goes on with the request of a connection; says whether its answer is complete.
    fn advance(&mut self, index: usize) -> io::Result<bool> {
        self.send(index)?;
        let connection = &mut self.connections[index];
        while connection.received < connection.sent {
            let rest = &mut self.buffer[connection.received..];
            match sys::recv(connection.socket.as_fd(), rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => connection.received += received,
                Err(error) if sys::would_block(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(connection.received == self.message.len())
    }
}

criterion_group!(benches, echo);
criterion_main!(benches);
