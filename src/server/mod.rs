//! Servers: an event loop that calls a handler for what its connections receive.

pub(crate) mod admission;
pub(crate) mod builder;
mod callbacks;
mod ending;
mod figures;
mod handlers;
pub(crate) mod life;
mod listening;
pub(crate) mod service;

use std::io;
use std::mem;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use duopoll_core::{Control, Group, Limits, on_poller_thread};
use futures_channel::oneshot;
use pollster::block_on;
use socket2::SockRef;

use crate::address::Address;
use crate::engine::EngineReport;
use crate::listener::{Begun, Listener, Listening, SocketFile};
use crate::poller::shutdown::Backlog;
use crate::poller::{Poller, deadlock};
use crate::pollers::Pollers;
use crate::server::admission::{Admission, Entrance, Placement};
use crate::server::listening::Beginning;
use crate::stats::{ServerStats, Stats};
use crate::trace;

/// A server that runs. Dropping it shuts it down without grace, and waits for that unless it is dropped on a poller's thread,
/// as in a handler. What can be done with it is what can be done with a [`RunningServer`].
#[derive(Debug)]
#[must_use = "a server that is dropped is shut down"]
pub struct Server(Arc<RunningServer>);

/// The way from a server's own handlers to it: see [`Builder::weak_server`](crate::Builder::weak_server).
#[derive(Clone, Debug, Default)]
pub struct WeakServer(Arc<Mutex<Weak<RunningServer>>>);

impl WeakServer {
    /// The server, or the last of them if the builder was cloned and served several times; none before it is served, and when
    /// it is gone.
    pub fn upgrade(&self) -> Option<Arc<RunningServer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    fn set(&self, server: &Arc<RunningServer>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(server);
    }
}

impl Server {
    #[cfg(feature = "metrics")]
    pub(crate) fn downgrade(&self) -> Weak<RunningServer> {
        Arc::downgrade(&self.0)
    }
}

impl Deref for Server {
    type Target = RunningServer;

    fn deref(&self) -> &RunningServer {
        &self.0
    }
}

/// What a [`Server`] does, for whoever does not own it.
#[derive(Debug)]
pub struct RunningServer {
    pollers: Pollers,
    /// They are nobody else's.
    own: bool,
    group: Group,
    admission: Arc<Admission>,
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
    /// Another process serves them.
    handed_over: bool,
    /// Who else may want to, and is to be told then.
    rivals: Vec<Weak<UnixStream>>,
}

impl RunningServer {
    /// Serves what another listener accepts too. Returns its address.
    ///
    /// # Errors
    /// What the engine says; [`NotConnected`](io::ErrorKind::NotConnected) after a shutdown, and when the pollers have ended;
    /// [`Deadlock`](io::ErrorKind::Deadlock) on a poller's thread, as in a handler:
    /// [`listen_async`](RunningServer::listen_async) works there.
    pub fn listen(&self, listener: Listener) -> io::Result<Address> {
        if on_poller_thread() {
            return Err(deadlock());
        }
        block_on(self.listen_async(listener))
    }

    /// As [`listen`](RunningServer::listen), for any thread. Dropping the future takes it back.
    ///
    /// # Errors
    /// As for `listen`, but `Deadlock`.
    pub async fn listen_async(&self, listener: Listener) -> io::Result<Address> {
        self.listen_on(listener, None)?.finish(self).await
    }

    /// `here`: the first of the pollers, if the calling thread is to run it.
    fn listen_on(&self, mut listener: Listener, here: Option<&mut Poller>) -> io::Result<Opening> {
        if self.listeners().over {
            return Err(was_shut_down());
        }
        let address = listener.local_addr()?;
        let mut handles = self.pollers.handles();
        handles.retain(|handle| !handle.has_ended());
        // One socket, or with SO_REUSEPORT one for each poller.
        let more = listener.others(handles.len().saturating_sub(1))?;
        let (socket, file, ahead) = listener.into_parts();
        // Whoever bound it may have left it blocking, and a poller must never block.
        SockRef::from(&socket).set_nonblocking(true)?;
        let placement =
            if more.is_empty() { Placement::Balanced } else { Placement::WhereAccepted };
        let entrance = Arc::new(Entrance { admission: self.admission.clone(), placement });
        let sockets = [socket].into_iter().chain(more);
        let beginning = Beginning::new(&handles, sockets, self.group, &entrance, here)?;
        Ok(Opening { address, file, ahead, beginning })
    }

    /// The address of the listener that it was started with.
    pub fn local_addr(&self) -> &Address {
        &self.address
    }

    /// The addresses of all its listeners.
    pub fn local_addrs(&self) -> Vec<Address> {
        self.listeners().addresses.clone()
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

    /// The figures of its pollers, added up: see [`Pollers::stats`]. Where it shares them with others, theirs too. Waits for
    /// nobody, may be called anywhere, and still works after the shutdown.
    pub fn stats(&self) -> Stats {
        self.pollers.stats()
    }

    /// The figures of this server alone. As [`stats`](RunningServer::stats) otherwise.
    pub fn server_stats(&self) -> ServerStats {
        self.admission.stats()
    }

    /// Connections that are open, on all pollers.
    pub fn open_connections(&self) -> usize {
        self.admission.open()
    }

    /// Changes how many connections may be open at once; none: as many as there are descriptors; 0: nobody is let in for now.
    /// Those that are open beyond it stay.
    pub fn set_max_connections(&self, max: Option<usize>) {
        self.admission.set_max(max);
    }

    /// What connections may hold that are accepted from now on.
    pub fn limits(&self) -> Limits {
        self.admission.limits()
    }

    /// Changes what connections may hold that are accepted from now on. The timeouts of those that are open can be changed by
    /// their [`connections`](RunningServer::connections), and what they may hold cannot.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported) if something is to be sent without a copy and an engine cannot do it on
    /// this kernel.
    pub fn set_limits(&self, limits: Limits) -> io::Result<()> {
        self.pollers.check(&limits)?;
        self.admission.set_limits(limits);
        Ok(())
    }

    /// Handles on its connections that are open, in no order: for an overview, or to end some.
    pub async fn connections(&self) -> Vec<Control> {
        let group = self.group;
        let handles = self.pollers.handles();
        let asked = handles.iter().map(|handle| handle.ask(move |poller| poller.controls(group)));
        let mut all = Vec::new();
        for answer in asked.collect::<Vec<_>>() {
            // A poller that has ended has none.
            all.extend(answer.await.unwrap_or_default());
        }
        all
    }

    /// Stops accepting, lets connections finish their requests, and closes those that are idle. What the kernel has
    /// accepted is still served, and what has arrived is still answered. When the grace is over the rest is closed
    /// by force: gives how many that were. Blocks until all are over: for a connection that is closed that takes until its
    /// peer closes too, or a second, and a handler that computes is waited for, since nobody can stop it. Harmless if it was
    /// done before.
    ///
    /// On a poller's thread, as in a handler, nobody can be waited for: the shutdown is begun, and 0 is returned at once. There
    /// and on the threads of other executors, [`shutdown_async`](RunningServer::shutdown_async) waits.
    pub fn shutdown(&self, grace: Duration) -> usize {
        let over = self.begin_shutdown(grace);
        if on_poller_thread() {
            return 0;
        }
        let forced = block_on(over).unwrap_or(0);
        if self.own {
            self.pollers.join();
        }
        forced
    }

    /// As [`shutdown`](RunningServer::shutdown), for any thread and any executor. It is begun when this is called, and goes on if the
    /// future is dropped. A task on one of the server's own pollers ends with them, before it is told.
    pub fn shutdown_async(&self, grace: Duration) -> impl Future<Output = usize> + Send + use<> {
        let over = self.begin_shutdown(grace);
        async move { over.await.unwrap_or(0) }
    }

    /// Its listening sockets, once more, and whether their files are its own.
    pub(crate) async fn listening(&self) -> io::Result<Vec<Listening>> {
        let group = self.group;
        let handles = self.pollers.handles();
        let asked = handles.iter().map(|handle| handle.ask(move |poller| poller.listening(group)));
        let mut all = Vec::new();
        for answer in asked.collect::<Vec<_>>() {
            // A poller that has ended has none.
            let sockets = answer.await.unwrap_or_else(|_| Ok(Vec::new()))?;
            all.extend(sockets);
        }
        let listeners = self.listeners();
        if listeners.over || all.is_empty() {
            return Err(was_shut_down());
        }
        let has_file = |socket: &OwnedFd| match SockRef::from(socket).local_addr() {
            Ok(address) => address
                .as_pathname()
                .is_some_and(|path| listeners.files.iter().any(|file| file.is_at(path))),
            Err(_) => false,
        };
        let with_files = all.into_iter().map(|socket| {
            let has_file = has_file(&socket);
            (socket, has_file)
        });
        Ok(with_files.collect())
    }

    /// Another process is about to have its sockets for good. False if one has them.
    pub(crate) fn begin_handing_over(&self) -> bool {
        !mem::replace(&mut self.listeners().handed_over, true)
    }

    /// Somebody wants its sockets, and is to be told if another process has them first.
    pub(crate) fn add_rival(&self, rival: &Arc<UnixStream>) {
        let rivals = &mut self.listeners().rivals;
        rivals.retain(|rival| rival.strong_count() > 0);
        rivals.push(Arc::downgrade(rival));
    }

    /// It has not come to that.
    pub(crate) fn keep(&self) {
        self.listeners().handed_over = false;
    }

    /// Another process serves its sockets now: their files are its own, and so is who waits in their queues.
    /// Gives those who wanted them as well.
    pub(crate) fn handed_over(&self) -> Vec<Weak<UnixStream>> {
        let mut listeners = self.listeners();
        listeners.files.iter().for_each(SocketFile::give_up);
        mem::take(&mut listeners.rivals)
    }

    fn begin_shutdown(&self, grace: Duration) -> oneshot::Receiver<usize> {
        let mut listeners = self.listeners();
        listeners.over = true;
        let backlog = if listeners.handed_over { Backlog::Left } else { Backlog::Served };
        drop(listeners);
        let (pollers, admission) = (self.pollers.clone(), self.admission.clone());
        let address = self.address.clone();
        ending::begin(address, pollers, self.own, self.group, admission, backlog, grace)
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener that its pollers are about to serve.
struct Opening {
    address: Address,
    file: Option<SocketFile>,
    ahead: Begun,
    beginning: Beginning,
}

impl Opening {
    async fn finish(mut self, server: &RunningServer) -> io::Result<Address> {
        self.beginning.all_listen().await?;
        let expected = {
            let mut listeners = server.listeners();
            if listeners.over {
                return Err(was_shut_down());
            }
            listeners.addresses.push(self.address.clone());
            listeners.files.extend(self.file);
            // A shutdown from now on waits for whoever is on its way.
            server.admission.expect()
        };
        self.beginning.keep();
        let heir = move |socket| expected.admission().admit(None, socket);
        self.ahead.hand_over(heir, Box::new(()));
        trace::listens(&self.address);
        Ok(self.address)
    }
}

fn was_shut_down() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the server was shut down")
}

impl Drop for Server {
    fn drop(&mut self) {
        let over = self.begin_shutdown(Duration::ZERO);
        // No poller waits for another, which may wait for it.
        if !on_poller_thread() {
            let _ = block_on(over);
            if self.own {
                self.pollers.join();
            }
        }
    }
}
