//! What the integration tests share: the matrix of engines and families, and peers made of std's sockets.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod alone;
pub mod broken;
pub mod full;
pub mod peers;
pub mod process;
pub mod sandbox;
pub mod settled;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use duopoll::{Address, Builder, Connection, Engine, EventLoop, Limits, Listener, Pollers, Server};
use settled::Settled;

/// How long anything may take before the test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// So many, or fewer where the environment variable `DUOPOLL_TEST_DIVISOR` says so: for machines that are emulated.
pub fn scaled(number: usize) -> usize {
    let divisor = std::env::var("DUOPOLL_TEST_DIVISOR").ok();
    let divisor = divisor.map_or(1, |divisor| divisor.parse().expect("a number"));
    number / divisor
}

/// A seed that nobody has run before, by the time of day.
pub fn fresh_seed() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is set");
    since.as_micros() as u64
}

/// Whether a test that always runs the same seeds shall run fresh ones, too: in CI, or with `DUOPOLL_FRESH=1`.
pub fn wants_fresh_seeds() -> bool {
    std::env::var_os("CI").is_some() || std::env::var("DUOPOLL_FRESH").is_ok_and(|yes| yes == "1")
}

/// How many MiB a test of sends without a copy sends over each connection: `DUOPOLL_ZEROCOPY_MIB` says otherwise.
pub fn sent_mebibytes() -> usize {
    let given = std::env::var("DUOPOLL_ZEROCOPY_MIB").ok();
    given.map_or(scaled(48), |given| given.parse().expect("a number"))
}

/// One cell of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub engine: Engine,
    pub family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Unix,
}

/// Runs each test on {epoll, uring} × {v4, v6, unix}.
#[macro_export]
macro_rules! on_every_setup {
    ($($name:ident),* $(,)?) => {
        $crate::on_every_setup!(@ epoll_v4, Epoll, V4, $($name)*);
        $crate::on_every_setup!(@ epoll_v6, Epoll, V6, $($name)*);
        $crate::on_every_setup!(@ epoll_unix, Epoll, Unix, $($name)*);
        $crate::on_every_setup!(@ uring_v4, Uring, V4, $($name)*);
        $crate::on_every_setup!(@ uring_v6, Uring, V6, $($name)*);
        $crate::on_every_setup!(@ uring_unix, Uring, Unix, $($name)*);
    };
    // Of the internet's families only.
    (internet: $($name:ident),* $(,)?) => {
        $crate::on_every_setup!(@ epoll_v4, Epoll, V4, $($name)*);
        $crate::on_every_setup!(@ epoll_v6, Epoll, V6, $($name)*);
        $crate::on_every_setup!(@ uring_v4, Uring, V4, $($name)*);
        $crate::on_every_setup!(@ uring_v6, Uring, V6, $($name)*);
    };
    (@ $module:ident, $engine:ident, $family:ident, $($name:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::support::Setup {
                        engine: duopoll::Engine::$engine,
                        family: $crate::support::Family::$family,
                    });
                }
            )*
        }
    };
}

impl Setup {
    /// Bytes that are received at most behind the one at which the engine was told to stop: one receive on epoll, and
    /// on io_uring all that a poller's shared buffers hold.
    pub fn overrun_bytes(self) -> u64 {
        if self.engine == Engine::Epoll { 512 << 10 } else { 4 << 20 }
    }

    /// Pollers of this cell. What their threads open to begin with has been closed.
    pub fn pollers(self, count: usize) -> Pollers {
        let pollers = Pollers::options().engine(self.engine).count(count).start();
        let pollers = pollers.expect("an engine");
        pollers.settle();
        pollers
    }

    /// A server's options for this cell, with one poller.
    pub fn builder(self) -> Builder {
        EventLoop::builder().engine(self.engine).pollers(1)
    }

    /// A free address.
    pub fn address(self) -> String {
        static NAMES: AtomicU32 = AtomicU32::new(0);
        match self.family {
            Family::V4 => "127.0.0.1:0".to_owned(),
            Family::V6 => "[::1]:0".to_owned(),
            Family::Unix => {
                let name = NAMES.fetch_add(1, Ordering::Relaxed);
                format!("unix:@duopoll-test-{}-{name}", std::process::id())
            }
        }
    }

    /// A listener on a free address.
    pub fn listener(self) -> Listener {
        Listener::bind(self.address()).expect("a free address")
    }

    /// A server for this cell.
    pub fn serve<F>(self, handler: F) -> Server
    where
        F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    {
        self.builder().on_request(handler).serve(self.listener()).expect("a server")
    }

    /// A server that sends back what it receives.
    pub fn serve_echo(self) -> Server {
        self.serve(echo)
    }
}

/// A connection of ours, on a poller of its own, and the other end of it.
pub fn connected(setup: Setup, limits: Limits) -> (Pollers, Connection, Peer) {
    let pollers = setup.pollers(1);
    let listener = setup.listener().pollers(pollers.clone()).limits(limits);
    let peer = Peer::connect(&listener.local_addr().expect("bound"));
    let connection = pollster::block_on(listener.accept()).expect("accepted");
    (pollers, connection, peer)
}

/// Polls a future once.
pub fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

pub async fn echo(connection: &mut Connection) -> io::Result<()> {
    let (reader, writer) = connection.split();
    writer.append(reader.buffer_mut());
    writer.flush().await
}

/// A blocking peer.
#[derive(Debug)]
pub enum Peer {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Peer {
    pub fn connect(address: &Address) -> Peer {
        let peer = match address {
            Address::Tcp(address) => Peer::Tcp(connect_tcp(*address)),
            Address::Unix(path) => Peer::Unix(UnixStream::connect(path).expect("connect")),
            Address::Abstract(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name);
                let address = address.expect("an abstract name");
                Peer::Unix(UnixStream::connect_addr(&address).expect("connect"))
            }
            other => panic!("{other} is no address to connect to"),
        };
        peer.set_timeout(PATIENCE);
        peer
    }

    pub fn set_timeout(&self, timeout: Duration) {
        let timeout = Some(timeout);
        let set = match self {
            Peer::Tcp(stream) => {
                stream.set_read_timeout(timeout).and(stream.set_write_timeout(timeout))
            }
            Peer::Unix(stream) => {
                stream.set_read_timeout(timeout).and(stream.set_write_timeout(timeout))
            }
        };
        set.expect("timeouts can be set");
    }

    pub fn try_clone(&self) -> Peer {
        match self {
            Peer::Tcp(stream) => Peer::Tcp(stream.try_clone().expect("a descriptor")),
            Peer::Unix(stream) => Peer::Unix(stream.try_clone().expect("a descriptor")),
        }
    }

    pub fn shutdown(&self, how: Shutdown) {
        let _ = match self {
            Peer::Tcp(stream) => stream.shutdown(how),
            Peer::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Closes with a reset, as far as the family knows one.
    pub fn reset(self) {
        if let Peer::Tcp(stream) = &self {
            let socket = socket2::SockRef::from(stream);
            socket.set_linger(Some(Duration::ZERO)).expect("linger can be set");
        }
    }

    /// Reads to the end.
    pub fn read_rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// Sends a message and reads as many bytes back.
    pub fn round_trip(&mut self, message: &[u8]) -> Vec<u8> {
        self.round_trip_of(message, message.len())
    }

    /// Sends, and receives so many bytes.
    pub fn round_trip_of(&mut self, message: &[u8], bytes: usize) -> Vec<u8> {
        self.write_all(message).expect("sent");
        let mut reply = vec![0; bytes];
        self.read_exact(&mut reply).expect("a reply");
        reply
    }
}

fn connect_tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_nodelay(true).expect("nodelay can be set");
    stream
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Peer::Tcp(stream) => stream.read(buffer),
            Peer::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Peer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Peer::Tcp(stream) => stream.write(buffer),
            Peer::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A repeatable generator of small random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// A length from 1 to `max`, each magnitude as likely as the others.
    pub fn length(&mut self, max: usize) -> usize {
        let bits = self.between(0, u64::from(max.ilog2()));
        (self.between(1 << bits, (2 << bits) - 1) as usize).min(max)
    }
}

/// Endless bytes that are cheap to make and to check: a random table, read round and round from a place of the
/// stream's own. The length is a prime, so that shifted bytes never look right.
#[derive(Clone, Debug)]
pub struct Pattern {
    at: usize,
}

const TABLE_BYTES: usize = 1_299_709;

impl Pattern {
    pub fn new(seed: u64) -> Pattern {
        Pattern { at: Random::new(seed).next() as usize % TABLE_BYTES }
    }

    /// The next bytes, at most `max`.
    pub fn next(&mut self, max: usize) -> &'static [u8] {
        static TABLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let table = TABLE.get_or_init(|| {
            let mut random = Random::new(7);
            let words = (0..TABLE_BYTES.div_ceil(8)).flat_map(|_| random.next().to_le_bytes());
            words.take(TABLE_BYTES).collect()
        });
        let n = max.min(TABLE_BYTES - self.at);
        let bytes = &table[self.at..self.at + n];
        self.at = (self.at + n) % TABLE_BYTES;
        bytes
    }

    /// How many bytes so many calls of [`next`](Pattern::next) give.
    pub fn take_lengths(mut self, calls: usize, max: usize) -> u64 {
        (0..calls).map(|_| self.next(max).len() as u64).sum()
    }

    /// Whether the next bytes are these.
    pub fn matches(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.next(bytes.len());
            let (front, rest) = bytes.split_at(expected.len());
            if front != expected {
                return false;
            }
            bytes = rest;
        }
        true
    }
}

/// Lets this process have as many descriptors as it may. Returns how many.
pub fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls use the structure during the call only.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// Descriptors that this process has open.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// The errno of an error, or of what it is about.
pub fn errno(error: &io::Error) -> Option<i32> {
    let source = || error.get_ref()?.source()?.downcast_ref::<io::Error>()?.raw_os_error();
    error.raw_os_error().or_else(source)
}

/// Waits until a condition holds that something else is working towards; fails when it takes too long.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the poller has nothing to send any more. Each answer comes from a later turn, and in each turn in which
/// there is something to send, it is sent.
pub fn wait_until_still(pollers: &Pollers) {
    let mut sends = (pollers.settled().sends, 0);
    while sends.1 < 4 {
        let now = pollers.settled().sends;
        sends = if now == sends.0 { (now, sends.1 + 1) } else { (now, 0) };
    }
}
