//! The proxy between clients and upstreams that behave, or do not.

mod support;

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use support::{
    ENGINES, FAMILIES, Family, PATIENCE, Proxy, Stream, any, echo, eventually, listen, nowhere,
    path, upstream, upstream_at,
};

#[test]
fn bytes_and_ends_come_over() {
    for (engine, family) in ENGINES.iter().flat_map(|engine| FAMILIES.map(|f| (engine, f))) {
        let upstream = upstream(family, echo);
        let at = listen(family);
        let proxy = Proxy::start(&format!("--engine {engine} --listen {at} --upstream {upstream}"));
        let mut client = proxy.connect();
        assert_eq!(client.round_trip(b"hello").expect("a reply"), b"hello");
        let sent: Vec<u8> = (0..3 << 20).map(|at| (at % 251) as u8).collect();
        let mut sender = client.try_clone();
        let bytes = sent.clone();
        let sends = thread::spawn(move || {
            sender.write_all(&bytes).expect("sent");
            // The other direction goes on.
            sender.finish();
        });
        let mut received = Vec::new();
        client.read_to_end(&mut received).expect("received");
        sends.join().expect("no panic");
        assert!(received == sent, "{engine} {family:?}: other bytes came back");
    }
}

#[test]
fn upstreams_take_turns() {
    let name =
        |name: &'static [u8]| move |mut stream: Stream| stream.write_all(name).expect("sent");
    let (one, two) = (upstream(Family::V4, name(b"1")), upstream(Family::V4, name(b"2")));
    let proxy = Proxy::start(&format!(
        "--listen 127.0.0.1:0 --upstream {one} --upstream {two} --health-interval 0"
    ));
    let mut seen = String::new();
    for _ in 0..6 {
        proxy.connect().read_to_string(&mut seen).expect("its name");
    }
    assert!(seen == "121212" || seen == "212121", "{seen}");
}

#[test]
fn who_refuses_or_does_not_answer_is_passed_over() {
    // A backlog that is full: nobody accepts, and further connects are not answered.
    let full = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = full.local_addr().expect("bound");
    // SAFETY: a listener is told of another backlog.
    assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&full), 0) }, 0);
    let _fills = std::net::TcpStream::connect(address).expect("one fits");
    let (refuses, hangs, serves) = (nowhere(), address.to_string(), upstream(Family::V4, echo));
    for engine in ENGINES {
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --connect-timeout 0.3 --tries 3 --upstream {refuses} \
             --upstream {hangs} --upstream {serves} --health-interval 0"
        ));
        for _ in 0..3 {
            assert_eq!(proxy.connect().round_trip(b"x").expect("served"), b"x");
        }
    }
}

#[test]
fn figures_are_told() {
    for engine in ENGINES {
        let (refuses, serves) = (nowhere(), upstream(Family::V4, echo));
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {refuses} --upstream {serves} \
             --health-interval 0 --eject-after 2 --eject-time 3600 --admin 127.0.0.1:0"
        ));
        for _ in 0..20 {
            assert_eq!(proxy.connect().round_trip(b"four").expect("served"), b"four");
        }
        eventually("all have left", || {
            Proxy::figure(proxy.admin(), "proxy_bytes_back_total") == 80
        });
        let of = |figure: &str, upstream: &str| {
            Proxy::figure(
                proxy.admin(),
                &format!("proxy_upstream_{figure}{{upstream=\"{upstream}\"}}"),
            )
        };
        assert_eq!((of("failures_total", &refuses), of("ejected", &refuses)), (2, 1));
        assert_eq!((of("failures_total", &serves), of("connections_total", &serves)), (0, 20));
        assert_eq!(Proxy::figure(proxy.admin(), "proxy_retries_total"), 2);
        assert_eq!(Proxy::figure(proxy.admin(), "proxy_clients_total"), 20);
        assert_eq!(Proxy::figure(proxy.admin(), "duopoll_server_accepts_total"), 20);
        assert_eq!(Proxy::get(proxy.admin(), "/healthz"), (200, "up\n".into()));
        assert_eq!(Proxy::get(proxy.admin(), "/other").0, 404);
    }
}

#[test]
fn what_the_proxy_ends_is_no_fault_of_an_upstream() {
    for engine in ENGINES {
        // It takes all, and says nothing.
        let silent = upstream(Family::V4, |mut stream| {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            std::thread::sleep(PATIENCE);
        });
        let unread = upstream(Family::V4, |_stream| std::thread::sleep(PATIENCE));
        for upstream in [silent, unread] {
            let proxy = Proxy::start(&format!(
                "--engine {engine} --pollers 1 --listen 127.0.0.1:0 --upstream {upstream} --admin 127.0.0.1:0 \
                 --health-interval 0 --eject-after 1 --eject-time 3600 --idle-timeout 0.2 --write-timeout 0.2"
            ));
            let mut client = proxy.connect();
            client.write_all(b"x").expect("sent");
            client.finish();
            let ended = || Proxy::figure(proxy.admin(), "proxy_timeouts_total") == 1;
            eventually("it is over time", ended);
            let of = |figure| {
                let name = format!("proxy_upstream_{figure}{{upstream=\"{upstream}\"}}");
                Proxy::figure(proxy.admin(), &name)
            };
            assert_eq!((of("failures_total"), of("ejected")), (0, 0));
        }
    }
}

#[test]
fn who_says_nothing_to_the_admin_has_no_place_for_long() {
    for engine in ENGINES {
        let serves = upstream(Family::V4, echo);
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {serves} --admin 127.0.0.1:0"
        ));
        let _silent: Vec<_> = (0..100).map(|_| Stream::connect(proxy.admin())).collect();
        assert_eq!(Proxy::get(proxy.admin(), "/healthz"), (200, "up\n".into()));
    }
}

#[test]
fn checks_find_who_is_down_and_up_again() {
    let comes_and_goes = nowhere();
    let proxy = Proxy::start(&format!(
        "--listen 127.0.0.1:0 --upstream {comes_and_goes} --admin 127.0.0.1:0 --health-interval 0.02 \
             --health-fall 2 --health-rise 2"
    ));
    eventually("it is down", || Proxy::get(proxy.admin(), "/healthz").0 == 503);
    assert!(proxy.connect().is_over());
    upstream_at(&comes_and_goes, echo);
    eventually("it is up", || Proxy::get(proxy.admin(), "/healthz").0 == 200);
    assert_eq!(proxy.connect().round_trip(b"x").expect("served"), b"x");
}

#[test]
fn resets_come_over_in_both_directions() {
    for engine in ENGINES {
        let resets = upstream(Family::V4, |mut stream| {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a byte");
            stream.reset();
        });
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {resets} --health-interval 0"
        ));
        let mut client = proxy.connect();
        client.write_all(b"x").expect("sent");
        let error = client.read(&mut [0]).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        let (tell, told) = std::sync::mpsc::channel();
        let waits = upstream(Family::V4, move |mut stream| {
            let _ = stream.write_all(b"x");
            let end = stream.read(&mut [0]).map_err(|error| error.kind());
            let _ = tell.send(end);
        });
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {waits} --health-interval 0"
        ));
        let mut client = proxy.connect();
        client.read_exact(&mut [0]).expect("connected");
        client.reset();
        // Health checks come and go, too.
        let mut ends = std::iter::from_fn(|| told.recv_timeout(PATIENCE).ok());
        assert!(ends.any(|end| end == Err(io::ErrorKind::ConnectionReset)));
    }
}

#[test]
fn who_closes_at_once_is_seen_to_close() {
    let closes = upstream(Family::V4, drop);
    let proxy = Proxy::start(&format!("--listen 127.0.0.1:0 --upstream {closes}"));
    for _ in 0..20 {
        assert!(proxy.connect().is_over());
    }
}

#[test]
fn who_does_not_read_is_not_sent_to_for_ever() {
    for engine in ENGINES {
        let pushes =
            upstream(Family::V4, |mut stream| while stream.write_all(&[0; 64 << 10]).is_ok() {});
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {pushes} --write-timeout 0.5 --admin 127.0.0.1:0 \
             --health-interval 0"
        ));
        let client = proxy.connect();
        eventually("it is over time", || Proxy::figure(proxy.admin(), "proxy_timeouts_total") == 1);
        drop(client);
    }
}

#[test]
fn an_address_may_have_so_many() {
    let serves = upstream(Family::V4, echo);
    let proxy =
        Proxy::start(&format!("--listen 127.0.0.1:0 --upstream {serves} --max-per-source 2"));
    let mut two = [proxy.connect(), proxy.connect()];
    for client in &mut two {
        assert_eq!(client.round_trip(b"x").expect("served"), b"x");
    }
    assert!(proxy.connect().is_over());
    drop(two);
    eventually("there is room", || proxy.connect().round_trip(b"x").is_ok());
}

#[test]
fn others_wait_while_there_are_as_many_as_may_be() {
    let serves = upstream(Family::V4, echo);
    let proxy =
        Proxy::start(&format!("--listen 127.0.0.1:0 --upstream {serves} --max-connections 1"));
    let mut first = proxy.connect();
    assert_eq!(first.round_trip(b"x").expect("served"), b"x");
    let mut second = proxy.connect();
    second.write_all(b"y").expect("sent");
    assert_eq!(first.round_trip(b"x").expect("served"), b"x");
    drop(first);
    second.read_exact(&mut [0]).expect("served when there is room");
}

/// An upstream that sends back what it was sent first.
fn tells_its_header() -> String {
    upstream(Family::V4, |mut stream| {
        let mut header = [0; 256];
        let n = stream.read(&mut header).unwrap_or(0);
        let _ = stream.write_all(&header[..n]);
        stream.finish();
    })
}

fn all_of(mut client: Stream) -> Vec<u8> {
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("received");
    all
}

#[test]
fn upstreams_are_told_who_the_client_is() {
    for (engine, family) in ENGINES.iter().flat_map(|engine| FAMILIES.map(|f| (engine, f))) {
        let upstream = tells_its_header();
        let at = listen(family);
        let start = |version| {
            Proxy::start(&format!(
                "--engine {engine} --listen {at} --upstream {upstream} --send-proxy {version} \
             --health-interval 0"
            ))
        };
        let proxy = start("v1");
        let client = proxy.connect();
        let expected = match family {
            Family::Unix => "PROXY UNKNOWN\r\n".to_owned(),
            family => {
                let (ours, protocol) =
                    (client.local_addr(), if family == Family::V4 { 4 } else { 6 });
                let theirs: std::net::SocketAddr = proxy.addresses[0].parse().expect("an address");
                format!(
                    "PROXY TCP{protocol} {} {} {} {}\r\n",
                    ours.ip(),
                    theirs.ip(),
                    ours.port(),
                    theirs.port()
                )
            }
        };
        assert_eq!(String::from_utf8(all_of(client)).expect("text"), expected);
        drop(proxy);
        let proxy = start("v2");
        let header = all_of(proxy.connect());
        let (command, length) = match family {
            Family::V4 => (0x21, 16 + 12),
            Family::V6 => (0x21, 16 + 36),
            Family::Unix => (0x20, 16),
        };
        assert_eq!((header[12], header.len()), (command, length));
    }
}

#[test]
fn what_a_header_says_is_passed_on() {
    let upstream = tells_its_header();
    for engine in ENGINES {
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {upstream} --accept-proxy --send-proxy v1 \
             --health-interval 0"
        ));
        let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n";
        let v2 = [
            &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..],
            &[192, 0, 2, 1, 198, 51, 100, 2, 0, 1, 0, 2],
        ]
        .concat();
        for (sent, expected) in
            [(&line[..], &line[..]), (&v2, b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n")]
        {
            // In whatever pieces.
            for pieces in [sent.len(), 1] {
                let mut client = proxy.connect();
                for piece in sent.chunks(pieces) {
                    client.write_all(piece).expect("sent");
                }
                client.write_all(b"more").expect("sent");
                let told = all_of(client);
                assert!(told.starts_with(expected), "{}", told.escape_ascii());
            }
        }
    }
}

#[test]
fn who_sends_no_header_or_a_wrong_one_is_refused() {
    for engine in ENGINES {
        let upstream = upstream(Family::V4, echo);
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {upstream} --accept-proxy --begin-timeout 0.3 \
             --admin 127.0.0.1:0"
        ));
        let long = [b"PROXY ", &[b'x'; 200][..]].concat();
        let wrong: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"PROXY TCP4 192.0.2.1\r\n",
            &long,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            // Nothing, and what never ends: they are over time.
            b"",
            b"PROXY TCP4",
        ];
        for sent in wrong {
            let mut client = proxy.connect();
            client.write_all(sent).expect("sent");
            assert!(client.is_over(), "{}", sent.escape_ascii());
        }
        assert_eq!(Proxy::figure(proxy.admin(), "proxy_bad_headers_total"), wrong.len() as u64);
    }
}

#[test]
fn a_stop_lets_them_go_on_and_an_end_is_an_end() {
    for engine in ENGINES {
        let serves = upstream(Family::V4, echo);
        let mut proxy =
            Proxy::start(&format!("--engine {engine} --listen 127.0.0.1:0 --upstream {serves}"));
        let mut client = proxy.connect();
        assert_eq!(client.round_trip(b"x").expect("served"), b"x");
        proxy.signal(libc::SIGTERM);
        eventually("nobody listens", || Stream::try_connect(&proxy.addresses[0]).is_err());
        assert_eq!(client.round_trip(b"y").expect("served"), b"y");
        drop(client);
        assert!(proxy.ended().success());
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let serves = upstream(Family::V4, echo);
    let mut proxy = Proxy::start(&format!("--listen 127.0.0.1:0 --upstream {serves} --grace 3600"));
    let mut client = proxy.connect();
    assert_eq!(client.round_trip(b"x").expect("served"), b"x");
    proxy.signal(libc::SIGTERM);
    eventually("nobody listens", || Stream::try_connect(&proxy.addresses[0]).is_err());
    proxy.signal(libc::SIGINT);
    assert!(proxy.ended().success());
    assert!(client.is_over());
}

#[test]
fn silent_clients_cost_others_nothing() {
    let serves = upstream(Family::V4, echo);
    for engine in ENGINES {
        let proxy =
            Proxy::start(&format!("--engine {engine} --listen 127.0.0.1:0 --upstream {serves}"));
        let silent: Vec<_> = (0..300).map(|_| proxy.connect()).collect();
        let begun = Instant::now();
        assert_eq!(proxy.connect().round_trip(b"x").expect("served"), b"x");
        assert!(begun.elapsed() < PATIENCE);
        drop(silent);
    }
}

#[test]
fn each_connection_has_a_line_in_the_log() {
    let serves = upstream(Family::V4, echo);
    let log = path("log");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_proxy"));
    command.args([
        "--listen",
        any(Family::V4),
        "--upstream",
        &serves,
        "--access-log",
        "--log-json",
    ]);
    command.stderr(std::fs::File::create(&log).expect("a file"));
    let mut proxy = Proxy::of(command);
    let mut client = proxy.connect();
    let address = client.local_addr();
    assert_eq!(client.round_trip(b"hello").expect("served"), b"hello");
    drop(client);
    proxy.signal(libc::SIGTERM);
    assert!(proxy.ended().success());
    let text = std::fs::read_to_string(&log).expect("a log");
    std::fs::remove_file(&log).expect("a file");
    let lines: Vec<_> = text.lines().filter(|line| line.contains("\"access\"")).collect();
    let [line] = lines[..] else { panic!("one line is for access:\n{text}") };
    for part in [
        format!("\"client\":\"{address}\""),
        format!("\"upstream\":\"{serves}\""),
        "\"there\":5,\"back\":5".into(),
        "\"end\":\"ended\"".into(),
    ] {
        assert!(line.contains(&part), "{part} is not in {line}");
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_proxy"));
        let output = command.args(arguments).output().expect("the proxy");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        (output.status.code(), text)
    };
    assert_eq!(run(&["--help"]).0, Some(0));
    assert_eq!(run(&["--nonsense"]).0, Some(2));
    assert_eq!(run(&["--listen", "127.0.0.1:0"]).0, Some(2));
    let (code, text) = run(&[
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        "127.0.0.1:1",
        "--tls-certificate",
        "/nonexistent",
        "--tls-key",
        "/nonexistent",
    ]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("/nonexistent"), "{text}");
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("bound").to_string();
    let (code, text) = run(&["--listen", &address, "--upstream", "127.0.0.1:1"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&address), "{text}");
}
