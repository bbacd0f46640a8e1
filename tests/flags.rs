//! The examples' flags: what they do, and that what is wrong with them is said in one line.

#[path = "support/example.rs"]
mod example;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use example::example;
use support::Peer;
use support::process::Process;

fn run(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(example(name));
    command.env_remove("DUOPOLL_ENGINE").args(args).output().expect("the example runs")
}

#[test]
fn a_bad_flag_is_one_line_and_code_2() {
    let bad: [&[&str]; 14] = [
        &["--no-such-flag"],
        &["--engine", "kqueue"],
        &["--pollers", "0"],
        &["--pollers", "many"],
        &["--grace", "soon"],
        &["--grace", "-1"],
        &["--idle-timeout", "inf"],
        &["--write-timeout", ""],
        &["--max-connections", "0"],
        &["--memory-budget", "0"],
        &["--memory-budget", "18446744073709551615"],
        &["--listen"],
        &["--listen", "nowhere"],
        &["--listen", "127.0.0.1:99999"],
    ];
    for name in ["echo", "redis", "rpc"] {
        for args in bad {
            let output = run(name, args);
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{name} {args:?}: {complaint}");
            assert_eq!(complaint.lines().count(), 1, "{name} {args:?}: {complaint}");
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn an_address_in_use_is_one_line_and_code_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = run("echo", &["--listen", &address]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains(&address) && complaint.contains("in use"), "{complaint}");
}

#[test]
fn help_names_every_flag() {
    for name in ["echo", "redis", "rpc"] {
        let output = run(name, &["--help"]);
        assert!(output.status.success());
        let help = String::from_utf8_lossy(&output.stdout);
        let flags = [
            "--listen",
            "--engine",
            "--pollers",
            "--grace",
            "--idle-timeout",
            "--write-timeout",
            "--max-connections",
            "--memory-budget",
            "--stats",
            "--help",
        ];
        for flag in flags {
            assert!(help.contains(flag), "no {flag} in: {help}");
        }
    }
}

#[test]
fn the_environment_decides_where_the_flag_says_auto() {
    let mut command = Command::new(example("echo"));
    command.env("DUOPOLL_ENGINE", "kqueue").args(["--listen", "127.0.0.1:0"]);
    let output = command.output().expect("the example runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint.contains("DUOPOLL_ENGINE") && complaint.contains("kqueue"), "{complaint}");
}

/// A server with these flags, on each engine.
fn with_flags(name: &str, flags: &[&str], test: impl Fn(Process)) {
    for engine in ["epoll", "uring"] {
        let mut command = Command::new(example(name));
        command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--stats"]).args(flags);
        test(Process::start(command));
    }
}

#[test]
fn the_grace_is_how_long_a_busy_connection_may_go_on() {
    // A reply that nobody reads is still on its way.
    let busy = |server: &Process| {
        let mut peer = Peer::connect(&server.address);
        peer.set_timeout(Duration::from_millis(200));
        while peer.write(&[7; 64 << 10]).is_ok() {}
        peer
    };
    with_flags("echo", &["--grace", "0.3"], |server| {
        let _peer = busy(&server);
        let start = Instant::now();
        let stats = server.end();
        assert!(start.elapsed() >= Duration::from_millis(300), "after {:?}", start.elapsed());
        assert!(stats.contains("\"forced\": 1"), "{stats}");
    });
    with_flags("echo", &["--grace", "0"], |server| {
        let _peer = busy(&server);
        let start = Instant::now();
        assert!(server.end().contains("\"forced\": 1"));
        assert!(start.elapsed() < Duration::from_secs(5), "after {:?}", start.elapsed());
    });
}

#[test]
fn an_idle_connection_is_ended_if_a_flag_says_so() {
    for name in ["echo", "redis", "rpc"] {
        with_flags(name, &["--idle-timeout", "0.1"], |server| {
            let mut peer = Peer::connect(&server.address);
            let start = Instant::now();
            assert_eq!(peer.read_rest().expect("the end"), b"");
            assert!(start.elapsed() >= Duration::from_millis(90), "after {:?}", start.elapsed());
            let stats = server.end();
            assert!(stats.contains("\"idle_timeouts\": 1"), "{stats}");
        });
    }
}

#[test]
fn a_peer_that_reads_nothing_is_given_up_if_a_flag_says_so() {
    with_flags("echo", &["--write-timeout", "0.1"], |server| {
        let mut peer = Peer::connect(&server.address);
        // Until the server gives it up.
        let piece = [7; 64 << 10];
        let error = loop {
            if let Err(error) = peer.write_all(&piece) {
                break error;
            }
        };
        let ended = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(ended.contains(&error.kind()), "{error}");
        let stats = server.end();
        assert!(stats.contains("\"handler_errors\": 1"), "{stats}");
    });
}

#[test]
fn no_more_connections_than_a_flag_says_are_open_at_once() {
    with_flags("echo", &["--max-connections", "2"], |server| {
        let mut first: Vec<_> = (0..2).map(|_| Peer::connect(&server.address)).collect();
        for peer in &mut first {
            assert_eq!(peer.round_trip(b"x"), b"x");
        }
        let mut third = Peer::connect(&server.address);
        third.write_all(b"y").expect("sent");
        third.set_timeout(Duration::from_millis(100));
        let error = third.read(&mut [0]).expect_err("no place is free");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        third.set_timeout(support::PATIENCE);
        drop(first);
        third.read_exact(&mut [0]).expect("a place is free");
        drop(third);
        server.end();
    });
}

#[test]
fn calls_go_over_few_connections() {
    with_flags("rpc", &[], |server| {
        let address = server.address.to_string();
        let client = |flags: &[&str]| run("rpc", &[&["--connect", &address], flags].concat());
        let output = client(&["--connections", "2", "--tasks", "10", "--calls", "1005"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with("1005 calls in "), "{said}");
        assert!(said.ends_with("0 were given up\n"), "{said}");
        let stats = server.end();
        assert!(stats.contains("\"accepts\": 2,"), "{stats}");

        // Nobody is there any more.
        let output = client(&[]);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(&address), "{complaint}");
        let output = client(&["--calls"]);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains("--calls"), "{complaint}");
    });
}
