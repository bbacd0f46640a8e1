//! The proxy as a process, and upstreams that do what a test wants.
#![allow(dead_code, unreachable_pub, reason = "not every test needs all of it")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How long anything may take before the test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const ENGINES: [&str; 2] = ["epoll", "uring"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Unix,
}

pub const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Unix];

/// The proxy, which is killed when it is dropped.
pub struct Proxy {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Where it listens.
    pub addresses: Vec<String>,
    admin: Option<String>,
}

impl Proxy {
    /// With the arguments of a line.
    pub fn start(line: &str) -> Proxy {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxy"));
        command.args(line.split_whitespace()).stderr(Stdio::null());
        Proxy::of(command)
    }

    pub fn of(mut command: Command) -> Proxy {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the proxy");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let end = words.iter().position(|word| word.contains('='));
        let addresses = words[2..end.unwrap_or_else(|| panic!("ready: {line}"))].to_vec();
        let admin = words.iter().find_map(|word| word.strip_prefix("admin=")).map(str::to_owned);
        Proxy { child, stdout, addresses, admin }
    }

    /// Where its figures are.
    pub fn admin(&self) -> &str {
        self.admin.as_ref().expect("it has one")
    }

    pub fn connect(&self) -> Stream {
        Stream::connect(&self.addresses[0])
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: it is a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the proxy ends", || self.child.try_wait().expect("a child").is_some());
        self.child.wait().expect("a child")
    }

    /// What is served under a path.
    pub fn get(address: &str, path: &str) -> (u16, String) {
        let mut stream = Stream::connect(address);
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    /// A figure of those that `/metrics` tells.
    pub fn figure(admin: &str, name: &str) -> u64 {
        let (_, text) = Proxy::get(admin, "/metrics");
        let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|it| it.0 == name));
        let value = line.and_then(|line| line.rsplit(' ').next()).map(str::parse);
        value.unwrap_or_else(|| panic!("no {name} in:\n{text}")).expect("a number")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A blocking connection.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub fn connect(address: &str) -> Stream {
        Stream::try_connect(address).unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    pub fn try_connect(address: &str) -> io::Result<Stream> {
        let stream = match address.strip_prefix("unix:") {
            Some(path) => Stream::Unix(UnixStream::connect(path)?),
            None => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        };
        stream.set_timeout(PATIENCE)?;
        Ok(stream)
    }

    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
        }
    }

    pub fn local_addr(&self) -> SocketAddr {
        match self {
            Stream::Tcp(stream) => stream.local_addr().expect("an address"),
            Stream::Unix(_) => panic!("a Unix socket"),
        }
    }

    pub fn try_clone(&self) -> Stream {
        match self {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone().expect("a descriptor")),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone().expect("a descriptor")),
        }
    }

    pub fn finish(&self) {
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Closes with a reset, as far as the family knows one.
    pub fn reset(self) {
        if let Stream::Tcp(stream) = &self {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            let bytes = size_of::<libc::linger>() as libc::socklen_t;
            let fd = std::os::fd::AsRawFd::as_raw_fd(stream);
            // SAFETY: the kernel reads a struct that is there.
            let set = unsafe {
                let linger = (&raw const linger).cast();
                libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, linger, bytes)
            };
            assert_eq!(set, 0);
        }
    }

    pub fn round_trip(&mut self, message: &[u8]) -> io::Result<Vec<u8>> {
        self.write_all(message)?;
        let mut reply = vec![0; message.len()];
        self.read_exact(&mut reply)?;
        Ok(reply)
    }

    /// Whether it was ended by the other side, in whatever way.
    pub fn is_over(&mut self) -> bool {
        match self.read(&mut [0; 1]) {
            Ok(0) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            Ok(_) => false,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(buffer),
            Stream::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Listens at an address of a family, and has a thread that does something with each connection. Returns where. The threads end with
/// the process.
pub fn upstream(family: Family, serve: impl Fn(Stream) + Send + Sync + 'static) -> String {
    let (listener, address) = match family {
        Family::Unix => {
            let path = path("upstream");
            let listener = UnixListener::bind(&path).expect("bound");
            (Listener::Unix(listener), format!("unix:{}", path.display()))
        }
        family => {
            let listener = TcpListener::bind(any(family)).expect("bound");
            let address = listener.local_addr().expect("bound").to_string();
            (Listener::Tcp(listener), address)
        }
    };
    serve_on(listener, serve);
    address
}

fn serve_on(listener: Listener, serve: impl Fn(Stream) + Send + Sync + 'static) {
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        loop {
            let stream = match &listener {
                Listener::Tcp(listener) => {
                    let (stream, _) = listener.accept().expect("accepted");
                    stream.set_nodelay(true).expect("a socket");
                    Stream::Tcp(stream)
                }
                Listener::Unix(listener) => Stream::Unix(listener.accept().expect("accepted").0),
            };
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
}

/// An upstream at an address that was free a moment ago.
pub fn upstream_at(address: &str, serve: impl Fn(Stream) + Send + Sync + 'static) {
    serve_on(Listener::Tcp(TcpListener::bind(address).expect("bound")), serve);
}

/// Where nobody listens.
pub fn nowhere() -> String {
    let listener = TcpListener::bind(any(Family::V4)).expect("bound");
    listener.local_addr().expect("bound").to_string()
}

pub fn echo(mut stream: Stream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
    stream.finish();
}

/// Any port of a family's loopback address.
pub fn any(family: Family) -> &'static str {
    if family == Family::V6 { "[::1]:0" } else { "127.0.0.1:0" }
}

/// Where a proxy may listen.
pub fn listen(family: Family) -> String {
    match family {
        Family::Unix => format!("unix:{}", path("proxy").display()),
        family => any(family).into(),
    }
}

/// A path that nobody else has.
pub fn path(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is set").subsec_nanos();
    let process = std::process::id();
    // Numbers of processes come again, and what was killed leaves its files.
    std::env::temp_dir().join(format!("duopoll-proxy-{process}-{now}-{number}-{name}"))
}

/// Waits until a condition holds that something else is working towards; fails when it takes too long.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}
