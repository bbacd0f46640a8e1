//! Out of descriptors: accepting waits and goes on, every time, without spinning.
//!
//! The server is an example in a process of its own, with a small limit.

mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use duopoll::Address;
use support::{Peer, example};

/// Descriptors that the server may have.
const DESCRIPTORS: u64 = 32;
/// More than that leaves for connections, and no more than wait in the backlog.
const CONNECTIONS: usize = 60;

struct Limited {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    address: Address,
}

impl Limited {
    fn start(engine: &str) -> Limited {
        let mut command = Command::new(example("echo"));
        command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--stats"]);
        command.stdout(Stdio::piped());
        let limit = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
        // SAFETY: setrlimit(2) is allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let mut child = command.spawn().expect("the example starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut ready = String::new();
        stdout.read_line(&mut ready).expect("a line");
        let address = ready.split(' ').nth(2).expect("listening on ADDRESS").parse();
        Limited { child, stdout, address: address.expect("an address") }
    }

    /// More connections than fit; all are served, as others go.
    fn crowd(&self) {
        let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| Peer::connect(&self.address)).collect();
        for peer in &mut peers {
            peer.write_all(b"x").expect("sent");
        }
        for mut peer in peers {
            peer.read_exact(&mut [0]).expect("served, sooner or later");
        }
    }

    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("procfs");
        let fields: Vec<_> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        let ticks: u64 =
            [fields[11], fields[12]].iter().map(|t| t.parse::<u64>().unwrap_or(0)).sum();
        Duration::from_millis(ticks * 10)
    }

    /// The last line that it prints.
    fn end(mut self) -> String {
        // SAFETY: kill(2) takes no memory.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        assert!(self.child.wait().expect("an end").success());
        let mut stats = String::new();
        self.stdout.read_to_string(&mut stats).expect("text");
        stats
    }
}

fn recovers_every_time(engine: &str) {
    let server = Limited::start(engine);
    for _ in 0..3 {
        server.crowd();
    }
    let stats = server.end();
    assert!(!stats.contains("\"accept_backoffs\": 0"), "the limit was never reached: {stats}");
    assert!(stats.contains(&format!("\"accepts\": {}", 3 * CONNECTIONS)), "{stats}");
}

fn ends_while_it_waits(engine: &str) {
    let server = Limited::start(engine);
    let peers: Vec<_> = (0..CONNECTIONS).map(|_| Peer::connect(&server.address)).collect();
    // Half a second in which nothing can be accepted costs no more than a few looks.
    let before = server.processor_time();
    std::thread::sleep(Duration::from_millis(500));
    let spent = server.processor_time() - before;
    assert!(spent <= Duration::from_millis(100), "{spent:?} of processor time to do nothing");
    drop(peers);
    server.end();
}

#[test]
fn epoll_recovers_every_time() {
    recovers_every_time("epoll");
}

#[test]
fn uring_recovers_every_time() {
    recovers_every_time("uring");
}

#[test]
fn epoll_ends_while_it_waits() {
    ends_while_it_waits("epoll");
}

#[test]
fn uring_ends_while_it_waits() {
    ends_while_it_waits("uring");
}
