//! The web server example and curl, by HTTP/1 and by HTTP/2, on both engines.

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use support::process::Process;
use support::{example, scaled};

/// Runs curl against a server of the example's, and gives what it prints.
struct Site(Process);

impl Site {
    fn start(engine: &str) -> Site {
        let mut command = Command::new(example("http"));
        command.args(["--listen", "127.0.0.1:0", "--engine", engine]);
        Site(Process::start(command))
    }

    fn curl(&self, version: &str, path: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "120", version]);
        curl.args(args).arg(format!("http://{}{path}", self.0.address));
        curl.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = curl.spawn().expect("curl is installed");
        let mut stdin = running.stdin.take().expect("piped");
        let input = input.to_vec();
        let writes = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = running.wait_with_output().expect("it ends");
        writes.join().expect("no panic");
        assert!(output.status.success(), "curl {version} {path} {args:?}");
        output.stdout
    }
}

fn pages_go_both_ways(engine: &str) {
    let site = Site::start(engine);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(site.curl(version, "/", &[], b""), b"hello\n");
        let json = ["-H", "content-type: application/json", "-d", r#"{"numbers": [1, 2, -7]}"#];
        assert_eq!(site.curl(version, "/sum", &json, b""), br#"{"sum":-4}"#);
        let source = include_bytes!("../examples/http.rs");
        assert!(site.curl(version, "/source", &[], b"") == source);
        // A body that is made while it is sent.
        let to = scaled(3_000_000);
        let counted = site.curl(version, &format!("/count/{to}"), &[], b"");
        let mut numbers = counted.split(|byte| *byte == b'\n');
        for number in 1..=to {
            assert_eq!(numbers.next(), Some(number.to_string().as_bytes()));
        }
        assert_eq!((numbers.next(), numbers.next()), (Some(&b""[..]), None));
        // One whose length nobody knows before its end, after the server has said to go on.
        let body: Vec<_> = (0..scaled(64 << 20)).map(|index| (index % 253) as u8).collect();
        let sum = body.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        let said = format!("{} bytes, which add up to {sum}\n", body.len());
        let upload = ["--upload-file", "-", "-H", "expect: 100-continue"];
        assert_eq!(site.curl(version, "/upload", &upload, &body), said.as_bytes());
    }
}

#[test]
fn pages_go_both_ways_on_epoll() {
    pages_go_both_ways("epoll");
}

#[test]
fn pages_go_both_ways_on_uring() {
    pages_go_both_ways("uring");
}
