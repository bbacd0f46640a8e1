//! What `top` says of a server, of one that goes and comes, and to a terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::FromRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Engine, EventLoop, Listener, Server};

/// Serves what the examples serve at `--metrics`.
#[path = "../../common/metrics.rs"]
mod metrics;

/// How long anything may take before the test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the terminal.
const ROWS: u16 = 30;
const COLUMNS: u16 = 120;

/// An echo server, and that of its figures.
fn serve(engine: Engine, metrics: &str) -> (Server, Server) {
    let builder = EventLoop::builder().engine(engine).pollers(2).timings(true);
    let weak = builder.weak_server();
    let server = builder
        .on_request(async |connection: &mut Connection| {
            let (reader, writer) = connection.split();
            writer.append(reader.buffer_mut());
            writer.flush().await
        })
        .serve(Listener::bind("127.0.0.1:0").expect("bound"))
        .expect("it serves");
    let listener = Listener::bind(metrics).expect("bound");
    let metrics = metrics::serve(listener, server.pollers(), weak).expect("it serves");
    (server, metrics)
}

fn top(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_top")).args(args).output().expect("it runs")
}

fn once(target: &str) -> String {
    let output = top(&[target, "--once", "--interval", "0.1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.local_addr().tcp().expect("TCP")).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

fn echo(stream: &mut TcpStream, bytes: usize) {
    stream.write_all(&vec![7; bytes]).expect("sent");
    stream.read_exact(&mut vec![0; bytes]).expect("a reply");
}

#[test]
fn once_shows_the_connections_with_their_bytes_and_peers() {
    for (engine, name) in [(Engine::Epoll, "epoll"), (Engine::Uring, "uring")] {
        let path = format!("/tmp/duopoll-top-{}-{name}", std::process::id());
        for metrics in ["127.0.0.1:0".to_owned(), format!("unix:{path}")] {
            let (server, metrics) = serve(engine, &metrics);
            let (mut much, mut little) = (connect(&server), connect(&server));
            echo(&mut much, 3072);
            echo(&mut little, 5);
            let shown = once(&metrics.local_addr().to_string());
            let lines: Vec<_> = shown.lines().collect();
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(lines[1].starts_with("server  open 2  waiting 0  accepts/s 0 "), "{shown}");
            assert!(lines[2].starts_with("memory  ") && lines[2].contains(" GiB "), "{shown}");
            for (poller, line) in [0, 1].into_iter().zip(&lines[5..]) {
                assert!(words(line).starts_with(&format!("{poller} {name} ")), "{shown}");
            }
            assert_eq!(lines[8], "connections  2, by bytes", "{shown}");
            // The most first.
            let figures = [(much, "3.0 KiB 3.0 KiB"), (little, "5 B 5 B")];
            for ((stream, bytes), line) in figures.iter().zip(&lines[10..]) {
                let peer = stream.local_addr().expect("an address");
                let line = words(line);
                let rest = format!(" {peer} {bytes} 0 B 0 B 0 B");
                assert!(line.starts_with("0x") && line.ends_with(&rest), "{shown}");
            }
            assert_eq!(lines.len(), 12, "{shown}");
        }
    }
}

#[test]
fn what_is_wrong_is_one_line() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = nobody.local_addr().expect("bound").to_string();
    drop(nobody);
    let wrong: [(&[&str], i32, &str); 7] = [
        (&[], 2, "missing"),
        (&["127.0.0.1:1", "127.0.0.1:2"], 2, "127.0.0.1:2"),
        (&["127.0.0.1:1", "--interval", "0"], 2, "--interval"),
        (&["127.0.0.1:1", "--interval", "soon"], 2, "soon"),
        (&["--no-such-flag"], 2, "--no-such-flag"),
        (&[&address, "--once"], 1, &address),
        (&[&address], 1, "no terminal"),
    ];
    for (args, code, expected) in wrong {
        let output = top(args);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{args:?}: {complaint}");
        assert!(complaint.contains(expected), "{args:?}: {complaint}");
        assert!(output.stdout.is_empty());
    }
    let help = top(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(help.status.success() && text.contains("--once") && text.contains("--interval"));
}

/// As much of a terminal as there must be to read it: only what has changed is written.
struct Screen {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Bytes of a character or a command that is not complete.
    rest: Vec<u8>,
}

impl Default for Screen {
    fn default() -> Screen {
        let cells = vec![vec![' '; COLUMNS.into()]; ROWS.into()];
        Screen { cells, row: 0, column: 0, rest: Vec::new() }
    }
}

impl Screen {
    fn take(&mut self, bytes: &[u8]) {
        let all = [std::mem::take(&mut self.rest), bytes.to_vec()].concat();
        let mut at = 0;
        while at < all.len() {
            let rest = &all[at..];
            let taken = if rest[0] == b'\x1b' { self.obey(rest) } else { self.write(rest) };
            let Some(taken) = taken else {
                self.rest = rest.to_vec();
                return;
            };
            at += taken;
        }
    }

    /// A command, of which those count that move the cursor. How long it is, if it is complete.
    fn obey(&mut self, bytes: &[u8]) -> Option<usize> {
        let end = bytes.iter().skip(2).position(|byte| (b'@'..=b'~').contains(byte))? + 2;
        if bytes[end] == b'H' {
            let text = std::str::from_utf8(&bytes[2..end]).expect("ASCII");
            let mut numbers = text.split(';').map(|number| number.parse().expect("a number"));
            let mut next = || numbers.next().unwrap_or(1) - 1;
            (self.row, self.column) = (next(), next());
        }
        Some(end + 1)
    }

    fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        let length = (1..=4).find(|length| {
            bytes.get(..*length).is_some_and(|bytes| std::str::from_utf8(bytes).is_ok())
        })?;
        let text = std::str::from_utf8(&bytes[..length]).expect("text");
        for char in text.chars() {
            self.cells[self.row][self.column] = char;
            self.column = (self.column + 1).min(usize::from(COLUMNS) - 1);
        }
        Some(length)
    }

    fn text(&self) -> String {
        let lines = self.cells.iter().map(|cells| cells.iter().collect::<String>());
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// `top` in a terminal of the test's.
struct InTerminal {
    child: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
    /// All of it.
    seen: String,
    screen: Screen,
}

impl InTerminal {
    fn start(target: &str) -> InTerminal {
        let size = libc::winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut ours, mut its) = (0, 0);
        // SAFETY: the descriptors are written to, the size is read, and the other two may be null.
        let opened = unsafe {
            let (ours, its) = (&raw mut ours, &raw mut its);
            libc::openpty(ours, its, std::ptr::null_mut(), std::ptr::null(), &raw const size)
        };
        assert_eq!(opened, 0);
        // SAFETY: they are new, and nobody else's.
        let (ours, its) = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(its)) };
        let stdio = || Stdio::from(its.try_clone().expect("a descriptor"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_top"));
        command.args([target, "--interval", "0.1"]);
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn();
        let (tell, shown) = channel();
        let mut reads = ours.try_clone().expect("a descriptor");
        // Ends with the last of those that have the terminal.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reads.read(&mut bytes) {
                if tell.send(bytes[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let (child, screen) = (child.expect("it runs"), Screen::default());
        InTerminal { child, keys: ours, shown, seen: String::new(), screen }
    }

    /// Waits until this is on the screen.
    fn shows(&mut self, text: &str) {
        let start = Instant::now();
        while !self.screen.text().contains(text) {
            let left = PATIENCE.saturating_sub(start.elapsed());
            let bytes = self.shown.recv_timeout(left);
            let bytes = bytes.unwrap_or_else(|_| panic!("no {text} in {}", self.screen.text()));
            self.seen += &String::from_utf8_lossy(&bytes);
            self.screen.take(&bytes);
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("pressed");
    }

    fn signal(&self, signal: i32) {
        // SAFETY: it is a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for its end, which leaves the terminal as it was.
    fn ends(mut self) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it goes on");
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status} {:?}", status.signal());
        while let Ok(bytes) = self.shown.recv_timeout(Duration::from_millis(200)) {
            self.seen += &String::from_utf8_lossy(&bytes);
        }
        let (alternate, plain) = ("\u{1b}[?1049h", "\u{1b}[?1049l");
        assert!(self.seen.contains(alternate) && self.seen.contains(plain), "{:?}", self.seen);
        assert!(self.seen.contains("\u{1b}[?25h"), "the cursor is back: {:?}", self.seen);
        // SAFETY: an all-zero termios is one, and the call writes it.
        let modes = unsafe {
            let mut modes: libc::termios = std::mem::zeroed();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&self.keys);
            assert_eq!(libc::tcgetattr(fd, &raw mut modes), 0, "{}", io::Error::last_os_error());
            modes
        };
        assert_eq!(modes.c_lflag & (libc::ICANON | libc::ECHO), libc::ICANON | libc::ECHO);
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_that_goes_is_told_of_and_one_that_comes_is_found() {
    let (server, metrics) = serve(Engine::Epoll, "127.0.0.1:0");
    let address = metrics.local_addr().to_string();
    let mut client = connect(&server);
    for _ in 0..100 {
        echo(&mut client, 1000);
    }
    let mut top = InTerminal::start(&address);
    top.shows(&client.local_addr().expect("an address").to_string());
    top.press(b"js");
    top.shows("by rate");
    drop((metrics, server));
    top.shows("gone for");
    top.press(b"p");
    top.shows("paused");
    top.press(b"p");
    let (_server, _metrics) = serve(Engine::Epoll, &address);
    top.shows("connections  0, by rate");
    top.press(b"q");
    top.ends();
}

#[test]
fn the_terminal_is_as_it_was_after_a_signal() {
    let (_server, metrics) = serve(Engine::Epoll, "127.0.0.1:0");
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut top = InTerminal::start(&metrics.local_addr().to_string());
        top.shows("epoll");
        top.signal(signal);
        top.ends();
    }
    // In a terminal whose keys are read one by one this is a key.
    let mut top = InTerminal::start(&metrics.local_addr().to_string());
    top.shows("epoll");
    top.press(b"\x03");
    top.ends();
}
