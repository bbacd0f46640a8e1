//! The Redis example as a process of its own, and a client that says exactly what goes over the wire.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::example::example;
use crate::support::PATIENCE;
use crate::support::process::Process;

/// A running server.
pub(crate) struct Redis {
    process: Process,
    port: String,
}

impl Redis {
    pub(crate) fn start(engine: &str) -> Redis {
        let mut command = Command::new(example("redis"));
        command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--stats"]);
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
        if let Err(error) = self.stream.read_exact(&mut bytes) {
            panic!("{error} instead of {expected:?}");
        }
        let (got, expected) = (bytes.escape_ascii(), expected.as_bytes());
        assert!(bytes == expected, "{got} instead of {}", expected.escape_ascii());
    }

    /// The next bytes are these, and the last.
    pub(crate) fn receive_to_end(&mut self, expected: &str) {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).expect("the end");
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
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
