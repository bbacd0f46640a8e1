//! A server before and while it starts.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use duopoll_core::{Group, contain};
use futures_channel::oneshot;
use pollster::block_on;
use socket2::SockRef;

use crate::connection::Connection;
use crate::listener::Listener;
use crate::poller::{Handle, Poller};
use crate::pollers::{PollerOptions, Pollers};
use crate::server::admission::{Admission, Permit};
use crate::server::builder::Builder;
use crate::server::figures::Figures;
use crate::server::{RunningServer, Server};
use crate::stats::count_handler_panic;
use crate::trace;

/// A server that is ready to be started.
#[must_use = "a service does nothing until it is served"]
pub struct Service {
    builder: Builder,
    begin: Box<Begin>,
    figures: Arc<Figures>,
    /// Why it cannot be served.
    refused: Option<&'static str>,
}

/// Starts what serves a connection.
type Begin = dyn Fn(&mut Poller, Connection, Permit) + Send + Sync;

impl Service {
    pub(super) fn new(
        builder: Builder,
        figures: Arc<Figures>,
        begin: impl Fn(&mut Poller, Connection, Permit) + Send + Sync + 'static,
    ) -> Service {
        Service { builder, begin: Box::new(begin), figures, refused: None }
    }

    /// Not to be served, if that is so.
    pub(super) fn refused_if(mut self, contradicts: bool, why: &'static str) -> Service {
        if contradicts {
            self.refused = Some(why);
        }
        self
    }

    /// Starts the pollers, and serves what the listener accepts. Returns at once; the server runs until it is shut
    /// down or dropped. [`RunningServer::listen`](RunningServer::listen) adds further listeners.
    ///
    /// # Errors
    /// What the engine says if a poller cannot be started: for [`Engine::Uring`](crate::Engine::Uring) the reason why
    /// there is no io_uring. [`InvalidInput`](io::ErrorKind::InvalidInput) for 0 pollers, if `DUOPOLL_ENGINE` names no
    /// engine, and for options that contradict each other. [`Unsupported`](io::ErrorKind::Unsupported) if something is
    /// to be sent without a copy and an engine cannot do it on this kernel. [`Deadlock`](io::ErrorKind::Deadlock) on a poller's
    /// thread, as in a handler: [`serve_async`](Service::serve_async) works there.
    pub fn serve(self, listener: Listener) -> io::Result<Server> {
        let server = self.server(&listener, PollerOptions::start)?;
        server.listen(listener)?;
        Ok(server)
    }

    /// As [`serve`](Service::serve), for any thread: also in a handler, a task, and within
    /// [`block_on`](crate::task::block_on), most of all with pollers that it runs [on](Builder::on). Dropping the future takes
    /// it back.
    ///
    /// # Errors
    /// As for `serve`.
    pub async fn serve_async(self, listener: Listener) -> io::Result<Server> {
        let server = self.server(&listener, PollerOptions::start)?;
        server.listen_async(listener).await?;
        Ok(server)
    }

    /// As [`serve`](Service::serve), with the calling thread as the first of the pollers: returns when the server is over.
    /// `until` is called when it listens, and what it returns runs as a task on this poller. When that is ready the
    /// server is shut down, with the grace that it gives; returns how many connections were then closed by force, and 0 if
    /// somebody else has ended the server or its pollers.
    ///
    /// On io_uring the kernel takes its ring down behind it, and may interrupt one blocking call of the thread meanwhile, as a
    /// signal does: it fails with [`Interrupted`](io::ErrorKind::Interrupted).
    ///
    /// With one poller the process needs no other thread. The kernel then counts no references
    /// to the descriptors of system calls, which makes each of them cheaper. Where pollers are
    /// [pinned](Builder::pinned), the thread stays bound to its CPU afterwards.
    ///
    /// ```no_run
    /// # use duopoll::{Connection, EventLoop, Listener};
    /// EventLoop::builder()
    ///     .pollers(1)
    ///     .on_request(async |connection: &mut Connection| {
    ///         let (reader, writer) = connection.split();
    ///         writer.append(reader.buffer_mut());
    ///         writer.flush().await
    ///     })
    ///     .serve_here(Listener::bind("127.0.0.1:8080")?, |server| {
    ///         println!("listening on {}", server.local_addr());
    ///         std::future::pending() // for ever
    ///     })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`serve`](Service::serve). What broke the engine of this poller, if that has ended it, or that the task has
    /// panicked; the server is over then, too. [`InvalidInput`](io::ErrorKind::InvalidInput) if it is to run
    /// [on](Builder::on) other pollers, or if the thread runs a poller already.
    pub fn serve_here<F, T>(self, listener: Listener, until: F) -> io::Result<usize>
    where
        F: FnOnce(&Server) -> T,
        T: Future<Output = Duration> + 'static,
    {
        let invalid = |message| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        if self.builder.shared.is_some() {
            return invalid("a server cannot run both here and on other pollers");
        }
        if Handle::is_here() {
            return invalid("this thread runs a poller already");
        }
        let mut here = None;
        let server = self.server(&listener, |options| {
            let (pollers, poller) = options.start_here()?;
            here = Some(poller);
            Ok(pollers)
        })?;
        let Some(poller) = here else { return invalid("there is no poller for this thread") };
        let server = Arc::new(server);
        let (reply, begun_end) = mpsc::channel();
        let panicked = Arc::new(AtomicBool::new(false));
        let mut begun: thread::Result<io::Result<()>> = Ok(Ok(()));
        let begin = |poller: &mut Poller| {
            begun = panic::catch_unwind(AssertUnwindSafe(|| {
                let opening = server.listen_on(listener, Some(poller))?;
                block_on(opening.finish(&server))?;
                let until = until(&server);
                let panicked = panicked.clone();
                let end = End { server: server.clone(), begun: false, panicked };
                poller.spawn(async move { drop(reply.send(end.begin(until.await))) });
                Ok(())
            }));
            if !matches!(begun, Ok(Ok(()))) {
                poller.handle().stop(None);
            }
        };
        let ran = poller.run(begin, &mut ());
        begun.unwrap_or_else(|panic| panic::resume_unwind(panic))?;
        ran?;
        if panicked.load(Ordering::Relaxed) {
            return Err(io::Error::other("what was to end the server has panicked"));
        }
        // Somebody else may have ended it, or its pollers.
        Ok(begun_end.recv().map_or(0, |over| block_on(over).unwrap_or(0)))
    }

    /// A server that does not listen yet.
    fn server(
        self,
        listener: &Listener,
        start: impl FnOnce(PollerOptions) -> io::Result<Pollers>,
    ) -> io::Result<Server> {
        let Service { builder, begin, figures, refused } = self;
        let Builder { pollers, shared, limits, max_connections, tasks, weak, callbacks } = builder;
        let own = shared.is_none();
        let refused = match &shared {
            Some(_) if pollers != PollerOptions::default() => {
                Some("options for pollers say nothing where pollers are given")
            }
            _ => refused,
        };
        if let Some(reason) = refused {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let pollers = shared.map_or_else(|| start(pollers), Ok)?;
        pollers.check(&limits)?;
        let group = next_group();
        let admission = Admission::new(
            pollers.clone(),
            figures.clone(),
            limits,
            max_connections,
            tasks.unwrap_or_default(),
            move |poller, socket, limits, permit| {
                // A panic of a callback ends the connection that it was called for.
                let contained = contain("a callback of a server", || {
                    let prepared = match &callbacks.prepare {
                        Some(prepare) => prepare(socket.as_fd()),
                        None => Ok(()),
                    };
                    let peer = prepared.is_err().then(|| peer_of(&socket));
                    match prepared.and_then(|()| poller.open(socket, limits, group)) {
                        Ok(connection) => {
                            trace::accepted(&connection.control());
                            if callbacks.prepare.is_some() {
                                connection.control().expose();
                            }
                            begin(poller, connection, permit);
                        }
                        Err(error) => {
                            figures.count_refusal();
                            trace::refused(&error);
                            let peer = peer.flatten().map(|peer| format!(" with {peer}"));
                            let peer = peer.unwrap_or_default();
                            log::debug!(
                                "a connection{peer} was accepted and is not served: {error}"
                            );
                        }
                    }
                });
                if !contained {
                    count_handler_panic();
                    figures.count_panic();
                }
            },
        );
        let address = listener.local_addr()?;
        let listeners = Mutex::default();
        let server = RunningServer { pollers, own, group, admission, address, listeners };
        let server = Arc::new(server);
        weak.set(&server);
        Ok(Server(server))
    }
}

fn peer_of(socket: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(socket).peer_addr().ok()?.as_socket()
}

/// The end of a server that one of its own pollers is to bring about.
struct End {
    server: Arc<Server>,
    begun: bool,
    panicked: Arc<AtomicBool>,
}

impl End {
    fn begin(mut self, grace: Duration) -> oneshot::Receiver<usize> {
        self.begun = true;
        self.server.begin_shutdown(grace)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Never begun, if what was to say when has panicked, or its poller was stopped.
        if !self.begun {
            self.panicked.fetch_or(thread::panicking(), Ordering::Relaxed);
            self.server.pollers.handles()[0].stop(None);
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("builder", &self.builder).finish_non_exhaustive()
    }
}

/// A group that is nobody else's.
fn next_group() -> Group {
    // 0 is that of connections which no server owns.
    static NEXT: AtomicU32 = AtomicU32::new(1);
    Group::new(NEXT.fetch_add(1, Ordering::Relaxed))
}
