//! The web server example and the clients that people have: curl, wrk, h2load, openssl,
//! and Python's requests and websockets; by HTTP/1 and HTTP/2, with TLS and
//! without, on both engines.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

use common::site::{Site, python, said};
use support::{PATIENCE, scaled};

on_every_site!(
    "http";
    pages_go_both_ways,
    a_gibibyte_goes_both_ways,
    requests_come_before_their_replies_are_read,
    wrk_finds_no_error,
    h2load_finds_no_error,
    python_finds_no_error,
    a_web_socket_is_told_of_the_end,
);

trait WebSite {
    fn url(&self, path: &str) -> String;
    fn versions(&self) -> [&'static str; 2];
    fn curl(&self, version: &str, path: &str, args: &[&str]) -> Child;
    fn fetch(&self, version: &str, path: &str, args: &[&str], input: Vec<u8>) -> Vec<u8>;
}

impl WebSite for Site {
    fn url(&self, path: &str) -> String {
        match self.certificate() {
            Some(_) => format!("https://localhost:{}{path}", self.address().port()),
            None => format!("http://{}{path}", self.address()),
        }
    }

    /// What curl is told besides, by the version of HTTP.
    fn versions(&self) -> [&'static str; 2] {
        let by_alpn = self.certificate().is_some();
        ["--http1.1", if by_alpn { "--http2" } else { "--http2-prior-knowledge" }]
    }

    /// curl with what it needs for this site, for an input and an output that are streams.
    fn curl(&self, version: &str, path: &str, args: &[&str]) -> Child {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "120", version]);
        curl.args(["--ipv4", "--write-out", "%{stderr}%{http_version}"]);
        if let Some(file) = self.certificate() {
            curl.arg("--cacert").arg(file);
        }
        curl.args(args).arg(self.url(path));
        curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        curl.spawn().expect("curl is installed")
    }

    /// Runs curl, and gives what it prints.
    fn fetch(&self, version: &str, path: &str, args: &[&str], input: Vec<u8>) -> Vec<u8> {
        let mut running = self.curl(version, path, args);
        let mut stdin = running.stdin.take().expect("piped");
        let writes = thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = running.wait_with_output().expect("it ends");
        writes.join().expect("no panic");
        check(&output, version);
        output.stdout
    }
}

/// It has done what it was asked, by the version that it was asked for.
fn check(curl: &Output, version: &str) {
    let said = String::from_utf8_lossy(&curl.stderr);
    assert!(curl.status.success(), "{said}");
    let expected = if version == "--http1.1" { "1.1" } else { "2" };
    assert_eq!(said, expected);
}

fn pages_go_both_ways(site: Site) {
    for version in site.versions() {
        assert_eq!(site.fetch(version, "/", &[], vec![]), b"hello\n");
        let json = ["-H", "content-type: application/json", "-d", r#"{"numbers": [1, 2, -7]}"#];
        assert_eq!(site.fetch(version, "/sum", &json, vec![]), br#"{"sum":-4}"#);
        let source = include_bytes!("../src/pages.rs");
        assert!(site.fetch(version, "/source", &[], vec![]) == source);
        // A body that is made while it is sent.
        let to = scaled(1_000_000);
        let counted = site.fetch(version, &format!("/count/{to}"), &[], vec![]);
        let mut numbers = counted.split(|byte| *byte == b'\n');
        for number in 1..=to {
            assert_eq!(numbers.next(), Some(number.to_string().as_bytes()));
        }
        assert_eq!((numbers.next(), numbers.next()), (Some(&b""[..]), None));
        // One whose length nobody knows before its end, after the server has said to go on.
        let body: Vec<_> = (0..scaled(8 << 20)).map(|index| (index % 253) as u8).collect();
        let said = said_of(&body);
        let upload = ["--upload-file", "-", "-H", "expect: 100-continue"];
        assert_eq!(site.fetch(version, "/upload", &upload, body), said.as_bytes());
    }
}

/// What the example says of an upload.
fn said_of(body: &[u8]) -> String {
    let sum = body.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    format!("{} bytes, which add up to {sum}\n", body.len())
}

/// By HTTP/1, and by HTTP/2 over TLS. Neither curl nor the server holds on to it.
fn a_gibibyte_goes_both_ways(site: Site) {
    let version = site.versions()[usize::from(site.certificate().is_some())];
    let bytes = scaled(if std::env::var_os("CI").is_some() { 1 << 30 } else { 64 << 20 });
    let piece: Vec<_> = (0..1 << 20).map(|index| (index % 251) as u8).collect();
    let pieces = bytes >> 20;
    let sum = piece.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    let sum = sum.wrapping_mul(pieces as u32);
    let mut upload = site.curl(version, "/upload", &["--upload-file", "-"]);
    let mut stdin = upload.stdin.take().expect("piped");
    (0..pieces).for_each(|_| stdin.write_all(&piece).expect("taken"));
    drop(stdin);
    let output = upload.wait_with_output().expect("it ends");
    check(&output, version);
    let said = format!("{} bytes, which add up to {sum}\n", pieces << 20);
    assert_eq!(output.stdout, said.as_bytes());

    // Numbers of ten digits, mostly.
    let to = bytes / 10;
    let mut download = site.curl(version, &format!("/count/{to}"), &[]);
    let mut lines = BufReader::with_capacity(1 << 20, download.stdout.take().expect("piped"));
    let (mut line, mut expected) = (Vec::new(), 0_u64);
    while lines.read_until(b'\n', &mut line).expect("text") > 0 {
        expected += 1;
        let number = line.iter().filter(|byte| byte.is_ascii_digit());
        let number = number.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        assert_eq!(number, expected, "another line than was sent");
        line.clear();
    }
    assert_eq!(expected, to as u64);
    check(&download.wait_with_output().expect("it ends"), version);
    let resident = site.process.resident_bytes();
    assert!(resident < 64 << 20, "{resident} bytes of memory");
}

/// What a stream is read and written by: bytes, or openssl's client around them.
struct ByHand {
    openssl: Option<Child>,
    input: Box<dyn Write>,
    output: Box<dyn Read>,
}

impl ByHand {
    fn connect(site: &Site) -> ByHand {
        if site.certificate().is_none() {
            let stream = std::net::TcpStream::connect(site.address()).expect("connected");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let output = Box::new(stream.try_clone().expect("a descriptor"));
            return ByHand { openssl: None, input: Box::new(stream), output };
        }
        let mut openssl = s_client(site, &["-quiet"]);
        let input = Box::new(openssl.stdin.take().expect("piped"));
        let output = Box::new(openssl.stdout.take().expect("piped"));
        ByHand { openssl: Some(openssl), input, output }
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        if let Some(openssl) = &mut self.openssl {
            let _ = openssl.kill();
            let _ = openssl.wait();
        }
    }
}

fn certificate(site: &Site) -> &Path {
    site.certificate().expect("it was started with TLS")
}

/// openssl's client, which checks the certificate.
fn s_client(site: &Site, args: &[&str]) -> Child {
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-connect", &site.address().to_string(), "-servername", "localhost"]);
    openssl.args(["-verify_return_error", "-CAfile"]).arg(certificate(site)).args(args);
    openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    openssl.spawn().expect("openssl is installed")
}

fn requests_come_before_their_replies_are_read(site: Site) {
    let mut peer = ByHand::connect(&site);
    let requests = "GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500);
    let last = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    peer.input.write_all((requests + last).as_bytes()).expect("sent");
    peer.input.flush().expect("sent");
    let mut replies = String::new();
    peer.output.read_to_string(&mut replies).expect("replies");
    assert_eq!(replies.matches("HTTP/1.1 200 OK\r\n").count(), 501);
    assert_eq!(replies.matches("hello\n").count(), 501);
}

fn wrk_finds_no_error(site: Site) {
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--connections", "32", "--duration", "1s", &site.url("/")]);
    let printed = said(&mut wrk);
    assert!(printed.contains("Requests/sec:"), "{printed}");
    for error in ["Socket errors", "Non-2xx"] {
        assert!(!printed.contains(error), "{printed}");
    }
}

fn h2load_finds_no_error(site: Site) {
    const REQUESTS: &str = "20000";
    for path in ["/", "/source"] {
        let mut h2load = Command::new("h2load");
        h2load.args(["--requests", REQUESTS, "--clients", "16", "--max-concurrent-streams", "16"]);
        let printed = said(h2load.arg(site.url(path)));
        let expected = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
        assert!(printed.contains(&expected), "{printed}");
    }
}

fn python_finds_no_error(site: Site) {
    let mut python = python("http_clients/client.py");
    python.arg(site.url("")).args(site.certificate());
    assert_eq!(said(&mut python), "done\n");
}

/// By its protocol's own means, so that it knows why.
fn a_web_socket_is_told_of_the_end(site: Site) {
    let mut python = python("http_clients/socket_end.py");
    python.arg(site.url("/socket")).args(site.certificate());
    python.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = python.spawn().expect("python is installed");
    let mut stdout = BufReader::new(running.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("text");
    assert_eq!(line, "connected\n");
    site.process.end();
    line.clear();
    stdout.read_to_string(&mut line).expect("text");
    assert_eq!(line, "1001 the server ends\n");
    assert!(running.wait().expect("it ends").success());
}

/// What openssl's client says until it ends, or for as long as its input is open.
fn said_by_openssl(site: &Site, input: &str, args: &[&str]) -> String {
    let mut openssl = s_client(site, args);
    let mut stdin = openssl.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("taken");
    let (told, tells) = mpsc::channel();
    let waits = thread::spawn(move || {
        let output = openssl.wait_with_output().expect("it ends");
        let _ = told.send([output.stdout, output.stderr].concat());
    });
    // It ends with the server's reply, which is the last.
    let said = tells.recv_timeout(PATIENCE).expect("it ends");
    waits.join().expect("no panic");
    drop(stdin);
    String::from_utf8_lossy(&said).into_owned()
}

const LAST: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

fn openssl_is_served(site: Site) {
    for version in ["-tls1_3", "-tls1_2"] {
        let said = said_by_openssl(&site, LAST, &[version, "-ign_eof"]);
        assert!(said.contains("hello\n") && said.contains("Verify return code: 0 (ok)"), "{said}");
        // The server has said that it ends.
        assert!(said.contains("closed") && !said.contains("unexpected eof"), "{said}");
    }
    // Older ones are refused.
    let said = said_by_openssl(&site, "", &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(said.contains("alert") && said.contains("Cipher is (NONE)"), "{said}");
    let alpn = said_by_openssl(&site, LAST, &["-alpn", "http/1.1", "-ign_eof"]);
    assert!(alpn.contains("ALPN protocol: http/1.1"), "{alpn}");
}

fn openssl_resumes_its_session(site: Site) {
    for version in ["-tls1_3", "-tls1_2"] {
        let session = certificate(&site).with_extension(version.trim_start_matches('-'));
        let path = session.to_str().expect("text");
        let first = said_by_openssl(&site, LAST, &[version, "-ign_eof", "-sess_out", path]);
        assert!(first.contains("New, TLS"), "{first}");
        let again = said_by_openssl(&site, LAST, &[version, "-ign_eof", "-sess_in", path]);
        assert!(again.contains("Reused, TLS") && again.contains("hello\n"), "{again}");
        std::fs::remove_file(session).expect("it was made");
    }
}

/// By `R`, a line that its client takes as a wish for new keys.
fn a_renegotiation_is_refused(site: Site) {
    let said = said_by_openssl(&site, "R\n", &["-tls1_2"]);
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(said.contains("no renegotiation") || said.contains("alert"), "{said}");
    assert!(!said.contains("hello"), "{said}");
}

fn who_goes_in_the_midst_of_a_handshake_disturbs_nobody(site: Site) {
    for _ in 0..20 {
        let mut openssl = s_client(&site, &[]);
        openssl.kill().expect("it runs");
        openssl.wait().expect("it ends");
    }
    let said = said_by_openssl(&site, LAST, &["-ign_eof"]);
    assert!(said.contains("hello\n"), "{said}");
}

macro_rules! with_tls {
    ($($name:ident,)*) => {$(
        mod $name {
            #[test]
            fn on_epoll() {
                super::$name(super::Site::start("http", "epoll", true));
            }

            #[test]
            fn on_uring() {
                super::$name(super::Site::start("http", "uring", true));
            }
        }
    )*};
}

with_tls!(
    openssl_is_served,
    openssl_resumes_its_session,
    a_renegotiation_is_refused,
    who_goes_in_the_midst_of_a_handshake_disturbs_nobody,
);

/// A server that is told to end says so to its clients, and waits for what they have asked.
#[test]
fn a_signal_lets_a_download_finish() {
    for (engine, tls) in [("epoll", false), ("epoll", true), ("uring", false), ("uring", true)] {
        let site = Site::start("http", engine, tls);
        let to = scaled(2_000_000);
        let mut curl = site.curl(site.versions()[1], &format!("/count/{to}"), &[]);
        let mut stdout = curl.stdout.take().expect("piped");
        let mut first = [0];
        stdout.read_exact(&mut first).expect("it has begun");
        site.process.terminate();
        let rest = thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
        let length: usize = (1..=to).map(|number| number.to_string().len() + 1).sum();
        assert_eq!(rest.join().expect("no panic").expect("the rest"), length as u64 - 1);
        check(&curl.wait_with_output().expect("it ends"), "--http2");
        site.process.end();
    }
}
