//! Calls over few connections: a server, and a client that loads it.
//!
//! ```text
//! cargo run --release --example rpc -- --listen 127.0.0.1:7100
//! cargo run --release --example rpc -- --connect 127.0.0.1:7100 --connections 2 --tasks 64 --calls 100000
//! ```
//!
//! Each message has a header of 13 bytes: how many bytes follow (4), what it is (1: 0 a request, 1 its reply, 2 a failure with
//! its text, 3 a ping, 4 its answer), and the number of the call (8), all big-endian. The first byte of a request is its method: `e`
//! gives back what follows, `u` the same in capital letters, and `s` sleeps for as many milliseconds as the number says that follows as
//! text. Replies come in any order.

#[path = "common/flags.rs"]
#[allow(dead_code, reason = "the client has flags of its own")]
mod flags;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use duopoll::mux::{self, Plain, Pool};
use duopoll::{Connection, Dialer, LinkBuffer, Pollers, Slice, task, time};
use lexopt::prelude::*;

const PROGRAM: flags::Program = flags::Program {
    about: "A server of calls over few connections; with --connect in place of --listen, its client.",
    listen: "127.0.0.1:7100",
    tls: false,
    password: false,
};

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--connect") {
        return match client() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(if error.kind() == io::ErrorKind::InvalidInput { 2 } else { 1 })
            }
        };
    }
    flags::main(&PROGRAM, |flags| {
        let service = flags.builder().on_connection(async |connection: Connection| {
            mux::serve(connection, Plain, mux::CALLS_MAX, answer).await
        });
        service.serve(flags.listener()?)
    })
}

async fn answer(request: Slice) -> io::Result<LinkBuffer> {
    let Some(&method) = request.first() else {
        return Err(io::Error::other("a request needs a method"));
    };
    let argument = request.subslice(1..request.len())?;
    match method {
        // Not copied.
        b'e' => Ok(LinkBuffer::from(argument)),
        b'u' => Ok(LinkBuffer::from(argument.to_ascii_uppercase())),
        b's' => {
            let text = std::str::from_utf8(&argument).unwrap_or_default();
            let milliseconds = text.parse().map_err(|_| io::Error::other("not a number"))?;
            time::sleep(Duration::from_millis(milliseconds)).await;
            Ok(LinkBuffer::new())
        }
        _ => Err(io::Error::other(format!("there is no method {:?}", char::from(method)))),
    }
}

/// What the client is told.
struct Load {
    connect: String,
    connections: usize,
    tasks: u64,
    calls: u64,
    bytes: usize,
    timeout: Duration,
}

fn parse() -> Result<Load, lexopt::Error> {
    let mut load = Load {
        connect: String::new(),
        connections: 1,
        tasks: 16,
        calls: 10_000,
        bytes: 64,
        timeout: Duration::from_secs(1),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("connect") => load.connect = parser.value()?.parse()?,
            Long("connections") => load.connections = parser.value()?.parse()?,
            Long("tasks") => load.tasks = parser.value()?.parse()?,
            Long("calls") => load.calls = parser.value()?.parse()?,
            Long("bytes") => load.bytes = parser.value()?.parse()?,
            Long("timeout") => load.timeout = Duration::from_secs_f64(parser.value()?.parse()?),
            argument => return Err(argument.unexpected()),
        }
    }
    Ok(load)
}

/// Makes calls from many tasks, and says how that went.
fn client() -> io::Result<()> {
    let load = parse().map_err(|error| {
        let usage = "--connect ADDRESS [--connections N] [--tasks N] [--calls N] [--bytes N] [--timeout SECONDS]";
        io::Error::new(io::ErrorKind::InvalidInput, format!("{error}; {usage}"))
    })?;
    let load = Arc::new(load);
    let (ok, late) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    Pollers::options().block_on(async {
        let pool = Pool::new(Dialer::new().timeout(load.timeout), &*load.connect, Plain)
            .connections(load.connections)
            .ping(Duration::from_secs(5));
        // One that fails tells at once.
        pool.client().await?.ping().await?;
        let tasks: Vec<_> = (0..load.tasks)
            .map(|number| {
                let (pool, load, ok, late) = (pool.clone(), load.clone(), ok.clone(), late.clone());
                task::spawn_local(async move {
                    let mut body = vec![b'e'];
                    body.resize(1 + load.bytes, b'x');
                    let body = Slice::from(body);
                    // As even as it goes.
                    for _ in (number..load.calls).step_by(load.tasks.max(1) as usize) {
                        let mut request = LinkBuffer::from(body.clone());
                        match time::timeout(load.timeout, pool.call(&mut request)).await {
                            Ok(reply) => assert_eq!(reply?, body[1..]),
                            Err(_) => {
                                late.fetch_add(1, Ordering::Relaxed);
                                continue;
                            }
                        }
                        ok.fetch_add(1, Ordering::Relaxed);
                    }
                    io::Result::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        io::Result::Ok(())
    })??;
    let (ok, late, took) =
        (ok.load(Ordering::Relaxed), late.load(Ordering::Relaxed), begun.elapsed());
    println!(
        "{ok} calls in {took:.3?}, {:.0} a second; {late} were given up",
        ok as f64 / took.as_secs_f64()
    );
    Ok(())
}
