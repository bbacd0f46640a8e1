//! A group of pollers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use duopoll_core::Limits;
use socket2::{Socket, Type};

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
    turn: AtomicUsize,
}

impl Pollers {
    /// Starts `count` pollers.
    ///
    /// # Errors
    /// What the engine says if one cannot be started; [`InvalidInput`](io::ErrorKind::InvalidInput) for 0.
    pub fn start(engine: Engine, count: usize) -> io::Result<Pollers> {
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "0 pollers do nothing"));
        }
        let mut group = Group { handles: Vec::with_capacity(count), turn: AtomicUsize::new(0) };
        for index in 0..count {
            group.handles.push(Handle::start(format!("duopoll-{index}"), engine)?);
        }
        Ok(Pollers { group: Arc::new(group) })
    }

    /// The group of the process, with [`Engine::Auto`] and as many pollers as the machine can run threads at once.
    /// Started at its first use, and never ended.
    ///
    /// # Errors
    /// As for [`start`](Pollers::start); the next call tries again.
    pub fn global() -> io::Result<Pollers> {
        static GLOBAL: Mutex<Option<Pollers>> = Mutex::new(None);
        let mut global = GLOBAL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pollers) = &*global {
            return Ok(pollers.clone());
        }
        let count = thread::available_parallelism().map_or(1, usize::from);
        Ok(global.insert(Pollers::start(Engine::Auto, count)?).clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.group.handles.len()
    }

    /// What each of them runs on, and why.
    pub fn engine_reports(&self) -> impl Iterator<Item = &EngineReport> {
        self.group.handles.iter().map(|handle| handle.report())
    }

    /// Their counters, added up. Asks each of them, so it is not for a hot path.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for handle in &self.group.handles {
            stats += handle.stats();
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

    /// The one whose turn it is.
    pub(crate) fn pick(&self) -> &Arc<Handle> {
        let turn = self.group.turn.fetch_add(1, Ordering::Relaxed);
        &self.group.handles[turn % self.group.handles.len()]
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
