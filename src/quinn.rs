//! QUIC, by [`quinn`](https://docs.rs/quinn) on the pollers: its sockets, timers and tasks.
//!
//! ```no_run
//! # async fn example(config: quinn::ServerConfig) -> std::io::Result<()> {
//! use duopoll::quinn::PollerRuntime;
//! use quinn::{Endpoint, EndpointConfig};
//! use std::net::UdpSocket;
//! use std::sync::Arc;
//!
//! let socket = UdpSocket::bind("0.0.0.0:4433")?;
//! // Within a task of a poller: the endpoint and all of its connections are on that one.
//! let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(PollerRuntime::here()))?;
//! while let Some(incoming) = endpoint.accept().await {
//!     duopoll::task::spawn_local(async move {
//!         let connection = incoming.await?;
//!         while let Ok((mut send, mut receive)) = connection.accept_bi().await {
//!             let request = receive.read_to_end(1 << 20).await.unwrap_or_default();
//!             let _ = send.write_all(&request).await;
//!             let _ = send.finish();
//!         }
//!         Ok::<_, quinn::ConnectionError>(())
//!     });
//! }
//! # Ok(()) }
//! ```
//!
//! The kernel cuts what is sent (`UDP_SEGMENT`) and puts together what comes (`UDP_GRO`) where it can, and tells of congestion and local
//! addresses: quinn's own `quinn-udp` sees to that. The pollers tell when a socket is ready.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use ::quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use ::quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};
use duopoll_core::{Direction, contain};

use crate::async_fd::Watching;
use crate::poller::{Handle, over};
use crate::pollers::Pollers;
use crate::task;
use crate::time::{Sleep, now, sleep_until};
use crate::udp::Room;

/// quinn's [`Runtime`] on a poller.
///
/// Endpoints and connections are to be closed before the pollers end: with them go the tasks in which quinn sees to its connections, and
/// whoever waits for one is not told.
///
/// What quinn starts from a task of a poller is on that poller: an endpoint made there, and its connections. Elsewhere it is on one of
/// the runtime's pollers.
#[derive(Clone, Debug)]
pub struct PollerRuntime(Option<Pollers>);

impl PollerRuntime {
    /// For endpoints that are made in tasks of pollers; elsewhere on the [global ones](Pollers::global).
    pub fn here() -> PollerRuntime {
        PollerRuntime(None)
    }

    /// For endpoints that are made anywhere, on these pollers.
    pub fn on(pollers: Pollers) -> PollerRuntime {
        PollerRuntime(Some(pollers))
    }

    fn poller(&self) -> io::Result<Arc<Handle>> {
        match (Handle::current(), &self.0) {
            (Some(poller), _) => Ok(poller),
            (None, Some(pollers)) => Ok(pollers.choose()),
            (None, None) => Ok(Pollers::nearest()?.choose()),
        }
    }
}

impl Runtime for PollerRuntime {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(sleep_until(deadline)))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        match self.poller() {
            Ok(poller) => drop(task::start(&poller, move || future)),
            // Whoever waits for it is told that it is gone.
            Err(error) => log::error!("a task of quinn's cannot be started: {error}"),
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        let watched = socket.as_fd().try_clone_to_owned()?;
        let shared = Arc::new(Socket {
            socket,
            state,
            watching: OnceLock::new(),
            beginning: Mutex::default(),
            room: Arc::default(),
        });
        let (poller, begins) = (self.poller()?, Arc::downgrade(&shared));
        drop(task::start(&poller.clone(), move || async move {
            let watching = Watching::begin(poller, watched).await;
            if let Some(socket) = begins.upgrade() {
                socket.begin(watching);
            }
        }));
        Ok(shared)
    }

    fn now(&self) -> Instant {
        now()
    }
}

struct Timer(Sleep);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.0.reset(deadline);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timer").field(&self.0.deadline()).finish()
    }
}

struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Set once; none if the pollers had ended.
    watching: OnceLock<Option<Watching>>,
    /// Who waits for that.
    beginning: Mutex<Vec<Waker>>,
    /// Who waits to send.
    room: Arc<Room>,
}

impl Socket {
    fn begin(&self, watching: io::Result<Watching>) {
        let _ = self.watching.set(watching.ok());
        let waiting = std::mem::take(&mut *self.beginning());
        for waker in waiting {
            contain("a waker", || waker.wake());
        }
    }

    fn beginning(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.beginning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_watching(&self, cx: &mut Context<'_>) -> Poll<io::Result<&Watching>> {
        if self.watching.get().is_none() {
            let waker = cx.waker().clone();
            self.beginning().push(waker);
        }
        // It may have begun meanwhile.
        match self.watching.get() {
            None => Poll::Pending,
            Some(Some(watching)) => Poll::Ready(Ok(watching)),
            Some(None) => Poll::Ready(Err(over())),
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let watching = self.watching.get().and_then(Option::as_ref);
        let told = watching.map(|watching| watching.told(Direction::Write));
        let sent = self.state.try_send((&self.socket).into(), transmit);
        let blocked = matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        if let (true, Some((watching, told))) = (blocked, watching.zip(told)) {
            watching.clear(Direction::Write, told);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        told: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let watching = ready!(self.poll_watching(cx))?;
        watching.poll_with(cx, Direction::Read, || {
            self.state.recv((&self.socket).into(), buffers, told)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.socket).finish()
    }
}

/// Waits for room to send.
#[derive(Debug)]
struct Writable(Arc<Socket>);

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let watching = ready!(self.0.poll_watching(cx))?;
        let all = self.0.room.join(cx);
        watching.poll_with(&mut Context::from_waker(&all), Direction::Write, || Ok(()))
    }
}
