//! The examples' flags: what they do, and that what is wrong with them is said in one line.

#[path = "support/example.rs"]
mod example;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use duopoll::Address;
use example::example;
use socket2::{Domain, Socket, Type};
use support::process::Process;
use support::{Peer, eventually};

fn run(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(example(name));
    command.env_remove("DUOPOLL_ENGINE").args(args).output().expect("the example runs")
}

#[test]
fn a_bad_flag_is_one_line_and_code_2() {
    let bad: [&[&str]; 15] = [
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
        &["--metrics", "nowhere"],
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
    let flags: [&[&str]; 2] =
        [&["--listen", &address], &["--listen", "127.0.0.1:0", "--metrics", &address]];
    for flags in flags {
        let output = run("echo", flags);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(&address) && complaint.contains("in use"), "{complaint}");
        assert!(output.stdout.is_empty());
    }
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
            "--metrics",
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

/// What is answered to a request: the head and the body, of the length that the head says.
fn ask(peer: &mut Peer, request: &str) -> (String, String) {
    peer.write_all(request.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        peer.read_exact(&mut byte).expect("a head");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length = length.expect("a length").parse().expect("a number");
    let mut body = vec![0; if request.starts_with("HEAD") { 0 } else { length }];
    peer.read_exact(&mut body).expect("a body");
    (head, String::from_utf8(body).expect("text"))
}

/// The value of a line of `/metrics`.
fn figure(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

const WITH_METRICS: [&str; 4] = ["--metrics", "127.0.0.1:0", "--pollers", "2"];

fn metrics_of(server: &Process) -> &Address {
    server.metrics.as_ref().expect("it tells its figures")
}

#[test]
fn figures_are_told_where_a_flag_says() {
    with_flags("echo", &WITH_METRICS, |server| {
        let mut client = TcpStream::connect(server.address.tcp().expect("TCP")).expect("connected");
        client.write_all(b"hello").expect("sent");
        client.read_exact(&mut [0; 5]).expect("a reply");
        let mut reader = Peer::connect(metrics_of(&server));
        let request =
            |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n");

        let (head, text) = ask(&mut reader, &request("GET", "/metrics"));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4\r\n"), "{head}");
        let engine = if text.contains("\"uring\"") { "uring" } else { "epoll" };
        // A poller's figures are published when its turn is over, and the client has its reply before.
        let of_each = |name: &str| {
            [0, 1].map(|poller| format!("{name}{{poller=\"{poller}\",engine=\"{engine}\"}}"))
        };
        for name in of_each("duopoll_received_bytes_total").iter().chain(&of_each("duopoll_timers"))
        {
            assert!(figure(&text, name) >= 0.0);
        }
        assert_eq!(figure(&text, "duopoll_server_accepts_total"), 1.0);
        assert_eq!(figure(&text, "duopoll_server_open_connections"), 1.0);
        assert!(figure(&text, "duopoll_memory_budget_bytes") > 0.0);
        for name in of_each("duopoll_turn_seconds_count") {
            let all = name.replace("_count", "_bucket").replace('}', ",le=\"+Inf\"}");
            assert_eq!(figure(&text, &name), figure(&text, &all));
        }
        each_family_is_in_one_piece(&text);

        // As many as there are, on one connection.
        let (head, _) = ask(&mut reader, &request("HEAD", "/metrics"));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let peer = client.local_addr().expect("an address");
        let told = format!(
            "\"peer\": \"{peer}\", \"received_bytes\": 5, \"sent_bytes\": 5, \"unsent_bytes\": 0}}"
        );
        // The client may have its reply before the poller knows that it was sent.
        eventually("all bytes are told", || {
            let (head, json) = ask(&mut reader, &request("GET", "/connections"));
            assert!(head.contains("Content-Type: application/json\r\n"), "{head}");
            assert!(json.starts_with("{\"total\": 1, "), "{json}");
            assert!(json.contains("{\"id\": \"0x"), "{json}");
            json.contains(&told)
        });
        let (head, _) = ask(&mut reader, &request("GET", "/"));
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");

        let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(9000));
        let ends = [
            (request("POST", "/metrics"), "405"),
            ("GET /metrics HTTP/1.0\r\n\r\n".to_owned(), "200"),
            ("*3\r\n$3\r\nset\r\n".to_owned(), "400"),
            ("GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "200"),
            (long, "431"),
        ];
        for (request, status) in ends {
            let mut reader = Peer::connect(metrics_of(&server));
            let (head, _) = ask(&mut reader, &request);
            assert_eq!(&head[9..12], status, "{head}");
            assert!(head.contains("Connection: close\r\n"), "{head}");
            assert_eq!(reader.read_rest().expect("the end"), b"", "{request:.40}");
        }
        // It was a server of its own.
        let (_, text) = ask(&mut reader, &request("GET", "/metrics"));
        assert_eq!(figure(&text, "duopoll_server_accepts_total"), 1.0);
        server.end();
    });
}

/// As Prometheus wants them: a type in front, and no name twice.
fn each_family_is_in_one_piece(text: &str) {
    let mut families = Vec::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let family = family.split(' ').next().expect("a name");
            assert!(!families.contains(&family), "{family} twice");
            families.push(family);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().expect("a name");
            let family = families.last().expect("a type");
            let rest = name.strip_prefix(family).expect("of the family");
            assert!(["", "_bucket", "_sum", "_count"].contains(&rest), "{line}");
        }
    }
    assert!(families.len() > 40, "{}", families.len());
}

#[test]
fn who_reads_no_figures_does_not_hold_up_the_end() {
    with_flags("echo", &WITH_METRICS, |server| {
        // Of whom the kernel takes a part of an answer, and who does not close.
        let address = metrics_of(&server).tcp().expect("TCP");
        let slow = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        slow.set_recv_buffer_size(2048).expect("set");
        slow.connect(&address.into()).expect("connected");
        let request = b"GET /metrics HTTP/1.1\r\n\r\n";
        slow.send(request).expect("sent");
        slow.peek(&mut [MaybeUninit::uninit()]).expect("an answer begins");
        // Who asks until no more requests are taken, since nobody reads the answers.
        let mut busy = Peer::connect(metrics_of(&server));
        busy.set_timeout(Duration::from_millis(200));
        let requests = request.repeat(1000);
        while busy.write(&requests).is_ok() {}
        let start = Instant::now();
        server.end();
        // Pollers that end wait for a second for what is left to send.
        assert!(start.elapsed() < Duration::from_millis(900), "after {:?}", start.elapsed());
    });
}
