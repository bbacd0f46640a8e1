//! The resolver and the clients that people have: dig, kdig and dnsperf.

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use support::{ENGINES, RIGHT, Resolver, Upstream};

/// On each engine, with an upstream of its own.
fn on_each(test: impl Fn(SocketAddr)) {
    for engine in ENGINES {
        let upstream = Upstream::start();
        let line = format!(
            "--engine {engine} --pollers 2 --listen 127.0.0.1:0 --upstream {}",
            upstream.address
        );
        let resolver = Resolver::start(&line);
        test(resolver.addresses[0]);
    }
}

/// What a client prints that has nothing to complain of.
fn said(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("ci/test.sh installs it");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {printed}{complaint}");
    printed
}

fn dig(program: &str, at: SocketAddr, args: &[&str]) -> String {
    let server = format!("@{}", at.ip());
    said(Command::new(program).args([&server, "-p", &at.port().to_string()]).args(args), "")
}

#[test]
fn dig_and_kdig_are_answered_over_udp_and_tcp() {
    on_each(|at| {
        for program in ["dig", "kdig"] {
            // By UDP, if nothing else is said.
            for transport in ["+time=5", "+tcp"] {
                let ask = |name: &str| dig(program, at, &[name, "A", transport, "+short"]);
                assert_eq!(ask("www.test").trim(), RIGHT.to_string());
                // Too many for a small datagram: they ask again over TCP.
                let all = ask("sixty.test");
                assert_eq!(all.lines().filter(|line| line.starts_with("10.")).count(), 60, "{all}");
            }
            let all = dig(program, at, &["nx.test", "A"]);
            assert!(all.contains("NXDOMAIN") && all.contains("SOA"), "{all}");
            let truncated = dig(program, at, &["sixty.test", "A", "+ignore", "+bufsize=512"]);
            assert!(truncated.contains("tc"), "{truncated}");
        }
    });
}

#[test]
fn dnsperf_loses_nothing() {
    let questions = "www.test A\nsixty.test A\nnx.test A\nnodata.test AAAA\n".repeat(500);
    on_each(|at| {
        for mode in ["udp", "tcp"] {
            let (host, port) = (at.ip().to_string(), at.port().to_string());
            let mut dnsperf = Command::new("dnsperf");
            dnsperf.args(["-s", &host, "-p", &port, "-m", mode, "-c", "4", "-n", "1"]);
            let report = said(&mut dnsperf, &questions);
            let figure = |name: &str| {
                let line = report.lines().find(|line| line.trim_start().starts_with(name));
                let words = line.and_then(|line| line.split(':').nth(1)).expect("a figure");
                words.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
            };
            assert_eq!((figure("Queries sent"), figure("Queries completed")), (2000, 2000));
            assert_eq!(figure("Queries lost"), 0, "{report}");
        }
    });
}
