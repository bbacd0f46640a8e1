//! A group of pollers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use duopoll_core::Limits;
use socket2::{Socket, Type};

use crate::affinity;
use crate::connection::Connection;
use crate::dialer;
use crate::engine::{Engine, EngineReport};
use crate::poller::Handle;
use crate::stats::Stats;

/// Threads that move bytes, each with an engine of its own, for connections that no server owns: those that a
/// [`Dialer`](crate::Dialer) dials and a [`Listener`](crate::Listener) accepts.
///
/// Cheap to clone; clones are the same group. When the last one is dropped, the pollers end, and what connections
/// they have left end with `ECONNABORTED`.
#[derive(Clone, Debug)]
pub struct Pollers {
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    handles: Vec<Arc<Handle>>,
    balance: Balance,
    turn: AtomicUsize,
}

/// Which poller gets the next connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Balance {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// The one with the fewest connections.
    FewestConnections,
}

/// How pollers are started: see [`Pollers::options`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PollerOptions {
    engine: Engine,
    count: Option<usize>,
    balance: Balance,
    pinned: bool,
}

impl PollerOptions {
    /// Which engine they run on. Default: [`Engine::Auto`].
    pub fn engine(mut self, engine: Engine) -> PollerOptions {
        self.engine = engine;
        self
    }

    /// How many, each a thread. Default: what the machine can run at once.
    pub fn count(mut self, count: usize) -> PollerOptions {
        self.count = Some(count);
        self
    }

    /// Which of them gets the next connection. Default: [`Balance::RoundRobin`].
    pub fn balance(mut self, balance: Balance) -> PollerOptions {
        self.balance = balance;
        self
    }

    /// Whether each is bound to a processor of its own, in turn, among those that the process may use. Default: no.
    pub fn pinned(mut self, pinned: bool) -> PollerOptions {
        self.pinned = pinned;
        self
    }

    /// Starts them.
    ///
    /// # Errors
    /// What the engine says if one cannot be started, or the kernel if one cannot be pinned;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a count of 0.
    pub fn start(self) -> io::Result<Pollers> {
        let count =
            self.count.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "0 pollers do nothing"));
        }
        let processors = if self.pinned { affinity::processors()? } else { Vec::new() };
        let mut group = Group {
            handles: Vec::with_capacity(count),
            balance: self.balance,
            turn: AtomicUsize::new(0),
        };
        for index in 0..count {
            let processor = processors.get(index % processors.len().max(1)).copied();
            let name = format!("duopoll-{index}");
            group.handles.push(Handle::start(name, self.engine, processor)?);
        }
        Ok(Pollers { group: Arc::new(group) })
    }
}

impl Pollers {
    /// Options, all with defaults.
    pub fn options() -> PollerOptions {
        PollerOptions::default()
    }

    /// The group of the process, with [`Engine::Auto`] and as many pollers as the machine can run threads at once.
    /// Started at its first use, and never ended.
    ///
    /// # Errors
    /// As for [`PollerOptions::start`]; the next call tries again.
    pub fn global() -> io::Result<Pollers> {
        static GLOBAL: Mutex<Option<Pollers>> = Mutex::new(None);
        let mut global = GLOBAL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pollers) = &*global {
            return Ok(pollers.clone());
        }
        Ok(global.insert(Pollers::options().start()?).clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.group.handles.len()
    }

    /// What each of them runs on, and why.
    pub fn engine_reports(&self) -> impl Iterator<Item = &EngineReport> {
        self.group.handles.iter().map(|handle| handle.report())
    }

    /// The counters of each. Asks them, so it is not for a hot path.
    pub fn stats_of_each(&self) -> Vec<Stats> {
        self.group.handles.iter().map(|handle| handle.stats()).collect()
    }

    /// Their counters, added up, and the figures of the process's pool. Asks them, so it is not for a hot path.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for one in self.stats_of_each() {
            stats += one;
        }
        stats.set_pool();
        stats
    }

    /// Takes over a connected stream socket: a std `TcpStream` or `UnixStream`, or any descriptor of the kind.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no stream socket, `ENOTCONN` if it is not connected.
    pub async fn adopt(&self, socket: impl Into<OwnedFd>) -> io::Result<Connection> {
        let socket = Socket::from(socket.into());
        if socket.r#type()? != Type::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a stream socket"));
        }
        socket.peer_addr()?;
        socket.set_nonblocking(true)?;
        dialer::adopt(self, socket.into(), Limits::default(), false).await
    }

    /// The one that gets the next connection.
    pub(crate) fn pick(&self) -> &Arc<Handle> {
        let Group { handles, balance, turn } = &*self.group;
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let index = match balance {
            Balance::RoundRobin => turn % handles.len(),
            Balance::Random => scattered(turn) % handles.len(),
            Balance::FewestConnections => {
                // Beginning with the one whose turn it is, so that equals take turns.
                let candidates = (0..handles.len()).map(|offset| (turn + offset) % handles.len());
                candidates.min_by_key(|index| handles[*index].load()).unwrap_or(0)
            }
        };
        handles[index].expect_connection();
        &handles[index]
    }

    pub(crate) fn handles(&self) -> &[Arc<Handle>] {
        &self.group.handles
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let now = Instant::now();
        let ending: Vec<_> = self.handles.iter().map(|handle| handle.end(now)).collect();
        for (handle, end) in self.handles.iter().zip(ending) {
            // A poller that drops the last handle of its own group cannot wait for itself.
            if !handle.is_local() {
                let _ = end.recv();
                handle.join();
            }
        }
    }
}

/// The numbers in a random order (splitmix64).
fn scattered(number: usize) -> usize {
    let mut z = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize
}
