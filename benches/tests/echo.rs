//! Every server of the build echoes every byte, for each shape of load, over TCP and Unix sockets.

use std::process::Command;

use duopoll_benches::load::{Mode, Outcome, Spec};
use duopoll_benches::process::{self, ServerProcess};
use duopoll_benches::servers::{self, Start};

const COMPARE: &str = env!("CARGO_BIN_EXE_compare");

/// A load for which the other parts of a specification are filled in.
fn load(mode: Mode, connections: usize, message: usize) -> Spec {
    Spec {
        target: String::new(),
        tls: None,
        server_pid: 0,
        mode,
        connections,
        idle: 8,
        slow: 0,
        message,
        framed: false,
        warm_ms: 20,
        measure_ms: 100,
        settle_ms: 0,
        verify: true,
    }
}

/// Starts a server, drives it with a verifying client for a moment, and returns the outcome.
fn drive(name: &str, unix: bool, load: Spec) -> Outcome {
    let listen = if unix { process::unix_address() } else { process::tcp_address().unwrap() };
    let mut command = Command::new(COMPARE);
    command
        .args(["serve", name, "--listen", &listen.to_string()])
        .args(["--burst", &load.message.to_string()])
        .args(load.framed.then_some("--framed"));
    let server = ServerProcess::start(command, 0, &listen).unwrap();
    let spec = Spec { target: listen.to_string(), server_pid: server.pid(), ..load };
    let spec = serde_json::to_string(&spec).unwrap();
    let output = Command::new(COMPARE).args(["load", &spec]).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}, unix {unix}, {spec}: {complaint}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Servers that need nothing but this executable.
fn names() -> Vec<&'static str> {
    let built_in = |server: &&servers::Server| matches!(server.start, Start::Function(_));
    servers::all().iter().filter(built_in).map(|server| server.name).collect()
}

#[test]
fn small_messages_come_back_whole() {
    for name in names() {
        for unix in [false, true] {
            let outcome = drive(name, unix, load(Mode::Closed { depth: 1 }, 16, 64));
            assert!(outcome.requests > 0, "{name}");
            assert!(outcome.server_cpu_ns > 0, "{name}");
        }
    }
}

#[test]
fn messages_larger_than_any_socket_buffer_come_back_whole() {
    for name in names() {
        for unix in [false, true] {
            drive(name, unix, load(Mode::Closed { depth: 1 }, 4, 5 << 20));
        }
    }
}

#[test]
fn pipelined_messages_come_back_in_order() {
    for name in names() {
        drive(name, false, load(Mode::Closed { depth: 25 }, 4, 1028));
    }
}

#[test]
fn messages_with_a_length_come_back_whole() {
    for name in names() {
        let framed = Spec { framed: true, ..load(Mode::Closed { depth: 25 }, 4, 1028) };
        assert!(drive(name, false, framed).requests > 0, "{name}");
    }
}

#[test]
fn short_connections_are_answered() {
    for name in names() {
        for unix in [false, true] {
            drive(name, unix, load(Mode::Churn, 16, 64));
        }
    }
}

#[test]
fn slow_senders_are_answered_beside_busy_connections() {
    for name in names() {
        let slow = Spec { slow: 1000, ..load(Mode::Closed { depth: 1 }, 4, 64) };
        let outcome = drive(name, false, slow);
        assert!(outcome.requests > 0, "{name}");
        assert!(outcome.slow_bytes >= 100, "{name}: {} bytes", outcome.slow_bytes);
    }
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let outcome = drive("classic", false, load(Mode::Open { rate: 5_000.0 }, 16, 64));
    let rate = outcome.requests as f64 / outcome.seconds;
    // A closed loop would be many times faster; a busy machine may answer some too late for the window.
    assert!((3_000.0..6_000.0).contains(&rate), "{rate} requests/s");
}
