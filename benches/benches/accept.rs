//! Connections from beginning to end: accepted by a server, and dialed.
//!
//! Whoever accepts sends one byte, so that whoever connects knows that it was. The time of an iteration is that of one
//! connection: connect, accept, the byte, close.
//!
//! `cargo bench -p duopoll-benches --bench accept`

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duopoll::{Connection, Dialer, Engine, EventLoop, Listener, Pollers, Server};
use duopoll_benches::address::Address;
use duopoll_benches::{process, sys};
use pollster::block_on;

mod common;

const GREETING: u8 = b'!';
const FAMILIES: [&str; 2] = ["TCP", "Unix"];
/// Connections that are opened together.
const TOGETHER: [usize; 2] = [1, 64];
/// Clients close first, so their ports wait in TIME_WAIT: they come from 127.0.0.2 and up.
const SOURCES: usize = 64;
/// Accepted connections stay open until so many others were accepted. By then their peers have closed.
const OPEN_MAX: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

/// A server accepts what plain sockets connect.
fn accept(c: &mut Criterion) {
    for family in FAMILIES {
        for together in TOGETHER {
            let name = format!("accept, {family}, {together} at a time");
            let mut group = common::group(c, &name);
            group.throughput(Throughput::Elements(1));
            for (name, engine) in common::engines() {
                let address = address(family);
                let server = greeter(engine, &address);
                let mut opened = 0;
                group.bench_function(BenchmarkId::from_parameter(name), |b| {
                    b.iter_custom(|count| {
                        let start = Instant::now();
                        let mut left = count as usize;
                        while left > 0 {
                            let now = left.min(together);
                            greeted(&address, now, opened).expect("connections");
                            opened += now;
                            left -= now;
                        }
                        start.elapsed()
                    });
                });
                assert_eq!(server.stats().accepts, opened as u64);
            }
            group.finish();
        }
    }
}

/// A dialer connects to a listener of std, and to one of ours, on pollers of its own.
fn dial(c: &mut Criterion) {
    for family in FAMILIES {
        for target in ["std", "duopoll"] {
            let mut group = common::group(c, &format!("dial, {family}, to a listener of {target}"));
            group.throughput(Throughput::Elements(1));
            for (name, engine) in common::engines() {
                let address = address(family);
                match target {
                    "std" => accept_by_std(&address),
                    _ => accept_by_ours(engine, &address),
                }
                let pollers = common::apart(|| Pollers::options().engine(engine).count(1).start());
                let dialer = dialer(pollers.expect("a poller"), family);
                let target = address.to_string();
                group.bench_function(BenchmarkId::from_parameter(name), |b| {
                    b.iter(|| {
                        block_on(async {
                            let mut connection = dialer.dial(&target).await.expect("a connection");
                            assert_eq!(connection.read_u8().await.expect("a byte"), GREETING);
                        });
                    });
                });
            }
            group.finish();
        }
    }
}

fn address(family: &str) -> Address {
    match family {
        "TCP" => process::tcp_address().expect("a port"),
        _ => process::unix_address(),
    }
}

/// A server that greets whoever connects.
fn greeter(engine: Engine, address: &Address) -> Server {
    let greet = async |connection: &mut Connection| {
        connection.write(&[GREETING])?;
        connection.flush().await
    };
    let service = EventLoop::builder()
        .engine(engine)
        .pollers(1)
        .on_connect(greet)
        .on_request(async |_: &mut Connection| Ok(()));
    let listener = Listener::bind(address.to_string()).expect("an address");
    common::apart(|| service.serve(listener)).expect("a server")
}

/// Opens connections, waits until all of them were greeted, and closes them.
fn greeted(address: &Address, count: usize, opened: usize) -> io::Result<()> {
    let connect = |index| {
        let source = Ipv4Addr::new(127, 0, 0, 2 + ((opened + index) % SOURCES) as u8);
        sys::connect(address, Some(source))
    };
    let connections = (0..count).map(connect).collect::<io::Result<Vec<OwnedFd>>>()?;
    for connection in connections {
        // The type only lends its methods, which work on any stream socket.
        let mut stream = UnixStream::from(connection);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut greeting = [0];
        stream.read_exact(&mut greeting)?;
        assert_eq!(greeting, [GREETING]);
    }
    Ok(())
}

/// A dialer whose connections end with a reset, which leaves no port in TIME_WAIT.
fn dialer(pollers: Pollers, family: &str) -> Dialer {
    let dialer = Dialer::new().timeout(PATIENCE).pollers(pollers);
    match family {
        "TCP" => dialer.prepare(sys::set_abortive_close),
        _ => dialer,
    }
}

/// Accepts and greets on a thread that lasts as long as the process.
fn accept_by_std(address: &Address) {
    fn greet<S: Write>(mut accept: impl FnMut() -> io::Result<S>) {
        let mut open = VecDeque::new();
        loop {
            let mut stream = accept().expect("a connection");
            stream.write_all(&[GREETING]).expect("a dialer that waits");
            open.push_back(stream);
            if open.len() > OPEN_MAX {
                open.pop_front();
            }
        }
    }
    match address {
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address).expect("a port");
            let accept = move || Ok::<TcpStream, _>(listener.accept()?.0);
            common::apart(|| thread::spawn(|| greet(accept)));
        }
        Address::Unix(path) => {
            let listener = UnixListener::bind(path).expect("a path");
            let accept = move || Ok::<UnixStream, _>(listener.accept()?.0);
            common::apart(|| thread::spawn(|| greet(accept)));
        }
    }
}

/// The same on pollers of ours.
fn accept_by_ours(engine: Engine, address: &Address) {
    let pollers = common::apart(|| Pollers::options().engine(engine).count(1).start());
    let listener = Listener::bind(address.to_string()).expect("an address");
    let listener = listener.pollers(pollers.expect("a poller"));
    let greet = async move {
        let mut open = VecDeque::new();
        loop {
            let mut connection = listener.accept().await.expect("a connection");
            connection.write(&[GREETING]).expect("memory");
            connection.flush().await.expect("a dialer that waits");
            open.push_back(connection);
            if open.len() > OPEN_MAX {
                open.pop_front();
            }
        }
    };
    common::apart(|| thread::spawn(|| block_on(greet)));
}

criterion_group!(benches, accept, dial);
criterion_main!(benches);
