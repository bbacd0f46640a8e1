//! Servers: an event loop that calls a handler for what its connections receive.

pub(crate) mod builder;
mod callbacks;
mod connection_limit;
mod handlers;
pub(crate) mod life;
pub(crate) mod service;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use duopoll_core::{Group, Token};
use socket2::SockRef;

use crate::address::Address;
use crate::engine::EngineReport;
use crate::listener::{Listener, SocketFile};
use crate::poller::{Handle, Poller};
use crate::pollers::Pollers;
use crate::server::connection_limit::{ConnectionLimit, Placement};
use crate::stats::Stats;

/// Longer than any grace, and short enough to be added to the time of day.
const GRACE_MAX: Duration = Duration::from_secs(1 << 32);

/// A server that runs. Dropping it shuts it down without grace.
#[derive(Debug)]
pub struct Server {
    pollers: Pollers,
    /// They are nobody else's.
    own: bool,
    group: Group,
    limit: Arc<ConnectionLimit>,
    address: Address,
    listeners: Mutex<Listeners>,
}

/// What a server listens on.
#[derive(Debug, Default)]
struct Listeners {
    addresses: Vec<Address>,
    /// Removed when the server is gone.
    files: Vec<SocketFile>,
    /// The server was shut down.
    over: bool,
}

impl Server {
    /// Serves what another listener accepts too. Returns its address.
    ///
    /// # Errors
    /// What the engine says; [`NotConnected`](io::ErrorKind::NotConnected) after a shutdown. Not to be called from a
    /// handler, which would wait for itself.
    pub fn listen(&self, listener: Listener) -> io::Result<Address> {
        self.listen_on(listener, None)
    }

    /// `here`: the first of the pollers, if the calling thread runs it.
    fn listen_on(&self, listener: Listener, mut here: Option<&mut Poller>) -> io::Result<Address> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if listeners.over {
            let message = "the server was shut down";
            return Err(io::Error::new(io::ErrorKind::NotConnected, message));
        }
        let address = listener.local_addr()?;
        let mut handles = self.pollers.handles();
        handles.retain(|handle| !handle.has_ended());
        // One socket, or with SO_REUSEPORT one for each poller.
        let more = (1..handles.len()).map_while(|_| listener.another());
        let more = more.collect::<io::Result<Vec<_>>>()?;
        let (socket, file) = listener.into_parts();
        // Whoever bound it may have left it blocking, and a poller must never block.
        SockRef::from(&socket).set_nonblocking(true)?;
        let placement =
            if more.is_empty() { Placement::Balanced } else { Placement::WhereAccepted };
        let sockets = [socket].into_iter().chain(more);
        let mut started: Vec<(&Arc<Handle>, Token)> = Vec::new();
        for (handle, socket) in handles.iter().zip(sockets) {
            let (group, acceptor) = (self.group, self.limit.clone().acceptor(placement));
            let listen = move |poller: &mut Poller| poller.listen(socket, group, acceptor);
            let token = match here.take() {
                Some(poller) => Some(listen(poller)),
                None => handle.ask(listen),
            };
            match token.unwrap_or_else(|| Err(handle.unanswered())) {
                Ok(token) => started.push((handle, token)),
                Err(error) => {
                    for (handle, token) in started {
                        handle.call(move |poller| poller.stop_listening(token));
                    }
                    return Err(error);
                }
            }
        }
        if started.is_empty() {
            return Err(io::Error::other("the pollers have ended"));
        }
        listeners.addresses.push(address.clone());
        listeners.files.extend(file);
        Ok(address)
    }

    /// The address of the listener that it was started with.
    pub fn local_addr(&self) -> &Address {
        &self.address
    }

    /// The addresses of all its listeners.
    pub fn local_addrs(&self) -> Vec<Address> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).addresses.clone()
    }

    /// The pollers it runs on.
    pub fn pollers(&self) -> &Pollers {
        &self.pollers
    }

    /// What the first poller runs on, and why. With [`Engine::Auto`](crate::Engine::Auto) a poller falls back on its own,
    /// so the others may differ: see [`Pollers::engine_reports`].
    pub fn engine_report(&self) -> EngineReport {
        self.pollers.handles()[0].report().clone()
    }

    /// The counters of all pollers, added up. Asks each of them, so it is not for a hot path. Still works after
    /// the shutdown.
    pub fn stats(&self) -> Stats {
        self.pollers.stats()
    }

    /// Stops accepting, lets connections finish their requests, and closes those that are idle. What the kernel has
    /// accepted is still served, and what has arrived is still answered. When the grace is over the rest is closed
    /// by force: returns how many that were. Blocks until all are over: for a connection that is closed that takes until its
    /// peer closes too, or a second, and a handler that computes is waited for, since nobody can stop it. Harmless if it was done before. Not to be called
    /// from a handler, which would wait for itself.
    pub fn shutdown(&self, grace: Duration) -> usize {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        let handles = self.pollers.handles();
        // First everywhere, so that no poller accepts for another that has ended.
        let leaving: Vec<_> = handles.iter().map(|handle| handle.unlisten(self.group)).collect();
        for answer in leaving {
            // An error: the poller has ended.
            let _ = answer.recv();
        }
        let deadline = Instant::now() + grace.min(GRACE_MAX);
        let end =
            |handle: &Arc<Handle>| handle.shut_down_group(self.group, deadline, self.limit.clone());
        let ending: Vec<_> = handles.iter().map(end).collect();
        let forced = ending.iter().map(|answer| answer.recv().unwrap_or(0)).sum();
        if self.own {
            self.pollers.stop();
        }
        forced
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}
