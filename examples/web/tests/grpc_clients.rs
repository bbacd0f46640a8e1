//! The gRPC example and the clients that people have: grpcurl, Python's, and its own; with TLS and without, on both engines.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::site::{Site, client, python, said};

on_every_site!(
    "grpc";
    grpcurl_learns_what_there_is,
    grpcurl_makes_calls_of_each_kind,
    who_watches_is_told_of_the_end,
    python_finds_no_error,
    the_examples_own_client_makes_calls_of_each_kind,
);

trait GrpcSite {
    fn grpcurl(&self, flags: &[&str], what: &[&str]) -> Command;
    fn call(&self, messages: &str, method: &str) -> String;
    fn own(&self, args: &[&str]) -> Output;
}

impl GrpcSite for Site {
    /// grpcurl with flags, and what is behind the address.
    fn grpcurl(&self, flags: &[&str], what: &[&str]) -> Command {
        let mut grpcurl = client("grpcurl/grpcurl");
        match self.certificate() {
            None => grpcurl.arg("-plaintext"),
            Some(file) => grpcurl.arg("-cacert").arg(file),
        };
        grpcurl.args(["-max-time", "60"]).args(flags).arg(self.address().to_string()).args(what);
        grpcurl
    }

    /// What grpcurl prints of a call, without the blanks.
    fn call(&self, messages: &str, method: &str) -> String {
        let printed = said(&mut self.grpcurl(&["-d", messages], &[method]));
        printed.split_whitespace().collect()
    }

    /// The example as a client.
    fn own(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_grpc"));
        command.args(["call", "--connect", &self.address().to_string()]);
        if let Some(file) = self.certificate() {
            command.arg("--ca").arg(file);
        }
        command.args(args).output().expect("the example runs")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const LIST: [&str; 4] = [
    "duopoll.echo.v1.Echo",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

fn grpcurl_learns_what_there_is(site: Site) {
    let list = said(&mut site.grpcurl(&[], &["list"]));
    assert_eq!(list.lines().collect::<Vec<_>>(), LIST);
    for service in LIST {
        let described = said(&mut site.grpcurl(&[], &["describe", service]));
        assert!(described.contains(&format!("{service} is a service")), "{described}");
    }
    let described = said(&mut site.grpcurl(&[], &["describe", "duopoll.echo.v1.Echo.Chat"]));
    let chat =
        "rpc Chat ( stream .duopoll.echo.v1.Text ) returns ( stream .duopoll.echo.v1.Text );";
    assert!(described.contains(chat), "{described}");
    let described = said(&mut site.grpcurl(&[], &["describe", ".duopoll.echo.v1.RepeatRequest"]));
    assert!(described.contains("uint32 pause_ms = 3;"), "{described}");
    let unknown = site.grpcurl(&[], &["describe", "duopoll.echo.v1.Nothing"]).output();
    assert!(text(&unknown.expect("it runs").stderr).contains("Symbol not found"));

    // grpcurl asks by the newer version, if there is one.
    let older = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
    let questions = r#"{"list_services": ""} {"file_by_filename": "echo.proto"} {"file_containing_symbol": "x.y"}"#;
    let answers = site.call(questions, older);
    for service in LIST {
        assert!(answers.contains(&format!(r#"{{"name":"{service}"}}"#)), "{answers}");
    }
    assert!(answers.contains(r#""fileDescriptorProto":[""#), "{answers}");
    assert!(answers.contains(r#""errorResponse":{"errorCode":5,"#), "{answers}");
}

fn grpcurl_makes_calls_of_each_kind(site: Site) {
    const HELLO: &str = r#"{"text":"hello"}"#;
    assert_eq!(site.call(HELLO, "duopoll.echo.v1.Echo/Say"), HELLO);
    let repeat = r#"{"text": "hello", "times": 3, "pause_ms": 5}"#;
    assert_eq!(site.call(repeat, "duopoll.echo.v1.Echo/Repeat"), HELLO.repeat(3));
    let texts = r#"{"text": "he"} {"text": "llo"}"#;
    assert_eq!(site.call(texts, "duopoll.echo.v1.Echo/Join"), HELLO);
    let replies = site.call(texts, "duopoll.echo.v1.Echo/Chat");
    assert_eq!(replies, r#"{"text":"he"}{"text":"llo"}"#);
    for service in ["", "duopoll.echo.v1.Echo"] {
        let asks = format!(r#"{{"service": "{service}"}}"#);
        assert_eq!(site.call(&asks, "grpc.health.v1.Health/Check"), r#"{"status":"SERVING"}"#);
    }
    let late = r#"{"text": "hello", "times": 2, "pause_ms": 60000}"#;
    let late = ["-d", late, "-max-time", "0.2"];
    let output = site.grpcurl(&late, &["duopoll.echo.v1.Echo/Repeat"]).output().expect("it runs");
    assert!(text(&output.stderr).contains("DeadlineExceeded"), "{output:?}");
}

fn who_watches_is_told_of_the_end(site: Site) {
    let mut watch = site.grpcurl(&["-d", "{}"], &["grpc.health.v1.Health/Watch"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().expect("it runs");
    let mut says = BufReader::new(watch.stdout.take().expect("piped"));
    let mut said = String::new();
    while !said.contains('}') {
        assert!(says.read_line(&mut said).expect("text") > 0, "it has ended with {said}");
    }
    assert!(said.contains(r#""SERVING""#), "{said}");
    site.process.end();
    said.clear();
    says.read_to_string(&mut said).expect("text");
    assert!(said.contains(r#""NOT_SERVING""#), "{said}");
    assert!(watch.wait().expect("it ends").success());
}

fn python_finds_no_error(site: Site) {
    let mut python = python("grpc_clients/client.py");
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/grpc"));
    python.arg(site.address().to_string()).args(site.certificate());
    assert_eq!(said(&mut python), "done\n");
}

fn the_examples_own_client_makes_calls_of_each_kind(site: Site) {
    let prints = |args: &[&str], expected: &str| {
        let output = site.own(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), expected, "{args:?}");
    };
    prints(&["say", "hello", "there"], "hello there\n");
    prints(&["repeat", "one", "two"], "one two\none two\n");
    prints(&["join", "he", "llo"], "hello\n");
    prints(&["chat", "one", "two", "three"], "one\ntwo\nthree\n");
    prints(&["health"], "SERVING\n");
    prints(&["health", "duopoll.echo.v1.Echo"], "SERVING\n");
    let fails = |args: &[&str], code: i32, expected: &str| {
        let output = site.own(args);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{args:?}: {complaint}");
        assert!(complaint.contains(expected), "{args:?}: {complaint}");
    };
    fails(&["health", "nothing"], 1, "NotFound");
    fails(&["--timeout", "0.01", "repeat", "one", "two"], 1, "DeadlineExceeded");
    fails(&["sing"], 2, "sing");
    fails(&["--no-such-flag"], 2, "--no-such-flag");
}

#[test]
fn an_untrusted_certificate_is_refused() {
    let site = Site::start("grpc", "auto", true);
    let other = Site::start("grpc", "auto", true);
    let mut command = Command::new(env!("CARGO_BIN_EXE_grpc"));
    command.args(["call", "--connect", &site.address().to_string(), "--ca"]);
    command.arg(other.certificate().expect("TLS")).args(["say", "hello"]);
    let output = command.output().expect("the example runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("certificate"), "{}", text(&output.stderr));
}
