//! Every proxy of the build brings every byte there and back, for each row of the comparison.

use std::path::PathBuf;
use std::process::Command;

use duopoll_benches::load::{self, Mode, Outcome, Spec};
use duopoll_benches::process::{self, ServerProcess};
use duopoll_benches::proxy::{self, Options, Programs, Server};
use duopoll_benches::scenario::{self, Pace, Shape, Work};
use duopoll_benches::web;

/// What is needed to start a proxy in front of an echo server.
struct Place {
    programs: Programs,
    scratch: PathBuf,
    certificate: Option<PathBuf>,
}

impl Place {
    fn new() -> Place {
        let mut build = vec!["--package", "duopoll-proxy"];
        // It comes to lie where `compare` does.
        build.extend((!cfg!(debug_assertions)).then_some("--release"));
        process::build("the proxy", &build).unwrap();
        let scratch = std::env::temp_dir().join(format!("duopoll-proxies-{}", std::process::id()));
        let certificate = web::certified(&scratch).inspect_err(|note| eprintln!("{note}")).ok();
        let compare = PathBuf::from(env!("CARGO_BIN_EXE_compare"));
        let programs = Programs { ours: compare.with_file_name("proxy"), compare };
        Place { programs, scratch, certificate }
    }

    /// Drives a proxy with a verifying client for a moment.
    fn drive(&self, server: &Server, shape: &Shape, threads: usize) -> std::io::Result<Outcome> {
        let (upstream, listen) = (process::tcp_address()?, process::tcp_address()?);
        let mut command = Command::new(&self.programs.compare);
        command.args(["serve", "classic", "--listen", &upstream.to_string()]);
        let _upstream = ServerProcess::start(command, 1, &upstream)?;
        let options = Options {
            listen: listen.tcp()?,
            upstream: upstream.tcp()?,
            threads,
            tls: self.certificate.clone().filter(|_| shape.tls),
        };
        let command = proxy::command(server, &options, &self.programs, &self.scratch)?;
        let process = ServerProcess::start(command, 0, &listen)?;
        let spec = Spec {
            target: listen.to_string(),
            tls: options.tls,
            server_pid: process.pid(),
            mode: match shape.pace {
                Pace::Closed { depth } => Mode::Closed { depth },
                Pace::Churn => Mode::Churn,
                Pace::Open { .. } => unreachable!("no row of proxies has an open loop"),
            },
            // As many as the row has would take the time of a run.
            connections: shape.connections.min(16),
            idle: shape.idle.min(8),
            slow: 0,
            message: shape.message,
            framed: false,
            warm_ms: 20,
            measure_ms: 200,
            settle_ms: 0,
            verify: true,
        };
        load::run(&spec)
    }
}

#[test]
fn every_row_comes_back_unchanged() {
    let place = Place::new();
    for scenario in scenario::all() {
        let Work::Proxy { shape, threads } = &scenario.work else { continue };
        if shape.tls && place.certificate.is_none() {
            continue;
        }
        let able = |server: &&Server| {
            (*threads == 1 || server.has_threads) && (!shape.tls || server.speaks_tls)
        };
        for server in proxy::all().iter().filter(able) {
            if let Err(note) = proxy::available(server) {
                eprintln!("{note}");
                continue;
            }
            let outcome = place.drive(server, shape, *threads).unwrap_or_else(|error| {
                panic!("{}, {}: {error}", scenario.name, server.name);
            });
            assert!(outcome.requests > 0, "{}, {}", scenario.name, server.name);
        }
    }
    std::fs::remove_dir_all(place.scratch).unwrap();
}
