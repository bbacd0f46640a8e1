//! Every server of QUIC does what every row of the comparison asks, and what is wrong is noticed.

#![cfg(feature = "quic")]

use std::io;
use std::path::{Path, PathBuf};

use duopoll_benches::load::Outcome;
use duopoll_benches::process;
use duopoll_benches::quic::load::{self, Spec};
use duopoll_benches::quic::shape::{Ask, Shape};
use duopoll_benches::quic::{self, Options, Server};
use duopoll_benches::scenario::{self, Work};
use duopoll_benches::web;

/// A certificate in a folder of its own, until it is dropped.
struct Certificate {
    scratch: PathBuf,
    folder: PathBuf,
}

impl Certificate {
    fn new(name: &str) -> Certificate {
        let scratch = format!("duopoll-quic-{}-{name}", std::process::id());
        let scratch = std::env::temp_dir().join(scratch);
        let folder = web::certified(&scratch).unwrap();
        Certificate { scratch, folder }
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// Drives a server for a moment with what the client is told to ask and to trust.
fn drive(
    server: &Server,
    shape: &Shape,
    asked: Ask,
    certificates: [&Certificate; 2],
) -> io::Result<Outcome> {
    let (listen, ask, threads) = (process::udp_address()?, shape.ask, shape.threads);
    let options = Options { listen, ask, certificate: certificates[0].folder.clone(), threads };
    let core = (threads == 1).then_some(0);
    let process = quic::start(Path::new(env!("CARGO_BIN_EXE_compare")), server, &options, core)?;
    load::run(&Spec {
        target: listen,
        certificate: certificates[1].folder.clone(),
        server_pid: process.pid(),
        ask: asked,
        // A few streams should end within the time.
        bytes: shape.bytes.min(4 << 20),
        connections: shape.connections.min(20),
        streams: shape.streams,
        warm_ms: 20,
        measure_ms: 200,
    })
}

#[test]
fn every_server_answers_what_every_row_asks() {
    let certificate = Certificate::new("rows");
    for scenario in scenario::all() {
        let Work::Quic(shape) = &scenario.work else { continue };
        let able = |server: &&Server| shape.threads == 1 || server.on_two_threads;
        for server in quic::all().iter().filter(able) {
            let outcome = drive(server, shape, shape.ask, [&certificate, &certificate]);
            let outcome = outcome.unwrap_or_else(|error| {
                panic!("{}, {}: {error}", scenario.name, server.name);
            });
            assert!(outcome.requests > 0, "{}, {}", scenario.name, server.name);
            assert!(outcome.server_cpu_ns > 0, "{}, {}", scenario.name, server.name);
            assert!(outcome.p50_us > 0.0, "{}, {}", scenario.name, server.name);
        }
    }
}

#[test]
fn a_wrong_answer_is_an_error() {
    let certificate = Certificate::new("wrong");
    let server = quic::find(quic::YARDSTICK).unwrap();
    let echo = Shape::echo(64, 1, 1);
    // What comes back to a number of bytes to send is the number.
    assert!(drive(server, &echo, Ask::Send, [&certificate, &certificate]).is_err());
    let sink = Shape { ask: Ask::Receive, ..echo };
    assert!(drive(server, &sink, Ask::Echo, [&certificate, &certificate]).is_err());
}

#[test]
fn another_certificate_is_not_trusted() {
    let (its, another) = (Certificate::new("its"), Certificate::new("another"));
    let server = quic::find(quic::YARDSTICK).unwrap();
    let shape = Shape::echo(64, 1, 1);
    assert!(drive(server, &shape, Ask::Echo, [&its, &another]).is_err());
}
