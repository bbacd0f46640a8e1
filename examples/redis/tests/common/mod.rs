//! The server as a process of its own, and a client that says exactly what goes over the wire.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use crate::support::PATIENCE;
use crate::support::process::Process;

/// Each test is one on each engine, with a server that has as many pollers as it says, or one.
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident,)*) => {
        $crate::on_both_engines!(@ epoll $($name)*);
        $crate::on_both_engines!(@ uring $($name)*);
    };
    (@ $engine:ident $($name:ident)*) => {
        mod $engine {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::common::Redis::start(stringify!($engine)));
                }
            )*
        }
    };
}

/// The program. Where there is no cargo, `DUOPOLL_TEST_EXAMPLES` names the directory it is in.
fn program() -> PathBuf {
    let given = std::env::var_os("DUOPOLL_TEST_EXAMPLES");
    let given = given.map(|directory| PathBuf::from(directory).join("redis"));
    given.filter(|program| program.exists()).unwrap_or(env!("CARGO_BIN_EXE_redis").into())
}

/// A running server.
pub(crate) struct Redis {
    process: Process,
    port: String,
}

impl Redis {
    /// With two pollers, so that two connections are on different ones.
    pub(crate) fn start(engine: &str) -> Redis {
        Redis::start_with(engine, &["--pollers", "2"])
    }

    pub(crate) fn start_with(engine: &str, flags: &[&str]) -> Redis {
        let mut command = Command::new(program());
        command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--stats"]).args(flags);
        let process = Process::start(command);
        let address = process.address.to_string();
        let port = address.strip_prefix("127.0.0.1:").expect("where it was told to").to_owned();
        Redis { process, port }
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(format!("127.0.0.1:{}", self.port)).expect("connect");
        stream.set_nodelay(true).expect("nodelay can be set");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Client { stream }
    }

    /// Runs the real benchmark, which must have nothing to complain of.
    pub(crate) fn benchmark(&self, args: &[&str]) {
        let output = self.tool("redis-benchmark", args);
        let results = output.matches("requests per second").count();
        assert!(results >= 10, "it measured: {output}");
        for word in ["rror", "ERR", "WARN", "disconnected"] {
            assert!(!output.contains(word), "{output}");
        }
    }

    /// Runs the real client. Returns what it prints, without the last line end.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let output = self.tool("redis-cli", args);
        output.strip_suffix('\n').unwrap_or(&output).to_owned()
    }

    fn tool(&self, name: &str, args: &[&str]) -> String {
        let mut command = Command::new(name);
        let output = command.args(["-p", &self.port]).args(args).output();
        let output = output.unwrap_or_else(|error| {
            panic!("{name} cannot be run: {error}. It is in Debian's package redis-tools.")
        });
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaint.is_empty(), "{name} {args:?}: {complaint}");
        String::from_utf8(output.stdout).expect("text")
    }

    pub(crate) fn port(&self) -> &str {
        &self.port
    }

    pub(crate) fn resident_bytes(&self) -> usize {
        self.process.resident_bytes()
    }

    /// Sends SIGTERM, waits for the end, which is a good one, and returns what was printed since the ready line.
    pub(crate) fn stop(self) -> String {
        self.process.end()
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
}

impl Client {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// The next bytes are these.
    pub(crate) fn receive(&mut self, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        let (mut got, mut ended) = (0, None);
        while got < bytes.len() && ended.is_none() {
            match self.stream.read(&mut bytes[got..]) {
                Ok(0) => ended = Some(ErrorKind::UnexpectedEof),
                Ok(n) => got += n,
                Err(error) => ended = Some(error.kind()),
            }
        }
        let (got, expected) = (&bytes[..got], expected.as_bytes());
        if got != expected {
            let same = got.iter().zip(expected).take_while(|(one, other)| one == other).count();
            let from = |bytes: &[u8]| {
                bytes[same..].chunks(200).next().map(|n| n.escape_ascii().to_string())
            };
            let (got, expected) = (from(got), from(expected));
            panic!("{got:?} instead of {expected:?}, behind {same} bytes; ended: {ended:?}");
        }
    }

    /// The next bytes are these, and the last.
    pub(crate) fn receive_to_end(&mut self, expected: &str) {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).expect("the end");
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }

    /// The other end has ended it, if by a reset.
    pub(crate) fn ends(&mut self) {
        match self.stream.read(&mut [0]) {
            Ok(len) => assert_eq!(len, 0, "the end"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }

    pub(crate) fn ask(&mut self, request: &str, reply: &str) {
        self.send(request.as_bytes());
        self.receive(reply);
    }

    /// The next line, without its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            self.stream.read_exact(&mut byte).expect("a line");
            line.push(byte[0]);
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).expect("text")
    }
}
