//! Several endpoints of one address.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use ::quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Incoming, ServerConfig, VarInt};

use duopoll_core::report;

use super::socket::Socket;
use super::steering::{Ids, Steered, Steering, steer};
use super::{Place, PollerRuntime};
use crate::poller::over;
use crate::pollers::Pollers;
use crate::task::{TaskGroup, spawn_local};
use crate::udp::UdpOptions;

/// Endpoints at one address, one on each poller, each with a socket of its own.
///
/// A connection stays on the poller that it has begun on, wherever its client moves to: the first byte of its connection ids says which one
/// that is, and the kernel delivers by it. Somebody who watches the network can tell connections of one poller from those of another by that
/// byte, and nothing else.
///
/// ```no_run
/// use duopoll::quinn::Endpoints;
/// use duopoll::udp::UdpSocket;
/// use duopoll::Pollers;
///
/// # fn example(config: quinn::ServerConfig) -> std::io::Result<()> {
/// let options = UdpSocket::options().receive_buffer_bytes(1 << 20);
/// let endpoints = Endpoints::bind(&Pollers::global()?, options, "0.0.0.0:4433", Default::default(), Some(config))?;
/// endpoints.serve(async |incoming| {
///     let Ok(connection) = incoming.await else { return };
///     while let Ok((mut send, mut receive)) = connection.accept_bi().await {
///         let request = receive.read_to_end(1 << 20).await.unwrap_or_default();
///         let _ = send.write_all(&request).await;
///         let _ = send.finish();
///     }
/// });
/// # Ok(()) }
/// ```
///
/// Dropped, they accept nothing more. Connections go on until they are closed, or whoever serves them is done.
#[must_use = "endpoints that are dropped accept nothing"]
pub struct Endpoints {
    address: SocketAddr,
    pollers: Pollers,
    all: Vec<Endpoint>,
    steering: Arc<Steering>,
    accepting: TaskGroup,
}

impl Endpoints {
    /// Binds a socket for each of the pollers, at most 256, and makes an endpoint of it; without a `ServerConfig` for clients only. How
    /// connection ids are made is replaced in `config`. Nobody else may be at the address: the kernel would give him what is for one of these.
    ///
    /// # Errors
    /// As for [`UdpOptions::bind`]; [`NotConnected`](io::ErrorKind::NotConnected) if the pollers have ended.
    pub fn bind(
        pollers: &Pollers,
        options: UdpOptions,
        address: impl ToSocketAddrs,
        config: EndpointConfig,
        server: Option<ServerConfig>,
    ) -> io::Result<Endpoints> {
        if pollers.have_ended() {
            return Err(over());
        }
        let handles = pollers.handles();
        let count = handles.len().min(256);
        let (address, sockets) = options.bound_each(address, count)?;
        if let (true, Err(error)) = (count > 1, steer(sockets[0].as_fd(), count)) {
            report(|| {
                log::debug!("the kernel does not choose an endpoint, so they forward: {error}")
            });
        }
        let steering = Arc::new(Steering::among(count));
        let endpoint = |(index, (socket, poller))| {
            let mut config = config.clone();
            let steered = (count > 1).then(|| Steered::new(&steering, index));
            if count > 1 {
                config.cid_generator(move || Box::new(Ids::new(count, index)));
            }
            let socket: Arc<dyn AsyncUdpSocket> =
                Socket::watched(UdpSocket::from(socket), Arc::clone(poller), steered)?;
            let runtime = Arc::new(PollerRuntime(Place::On(Arc::clone(poller))));
            Endpoint::new_with_abstract_socket(config, server.clone(), socket, runtime)
        };
        let all = sockets.into_iter().zip(&handles).enumerate().map(endpoint);
        let all = all.collect::<io::Result<_>>()?;
        let (pollers, accepting) = (pollers.clone(), TaskGroup::new());
        Ok(Endpoints { address, pollers, all, steering, accepting })
    }

    /// Has the handler called for each connection that comes, in a task on the poller of its endpoint.
    pub fn serve<H>(&self, handler: H)
    where
        H: AsyncFn(Incoming) + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        for (index, endpoint) in self.all.iter().enumerate() {
            let (endpoint, handler) = (endpoint.clone(), handler.clone());
            let accept = move || async move {
                while let Some(incoming) = endpoint.accept().await {
                    let handler = handler.clone();
                    drop(spawn_local(async move { handler(incoming).await }));
                }
            };
            drop(self.accepting.spawn_on(&self.pollers, index, accept));
        }
    }

    /// Where they are bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Each of them, in the order of the pollers. Those are not to be [rebound](Endpoint::rebind): what the kernel delivers and the others
    /// forward does not come to another socket.
    pub fn each(&self) -> &[Endpoint] {
        &self.all
    }

    /// How many datagrams came to another endpoint than their own, and were forwarded.
    pub fn forwarded_datagrams(&self) -> u64 {
        self.steering.forwarded()
    }

    /// How many of those were lost since their endpoint was too far behind.
    pub fn lost_datagrams(&self) -> u64 {
        self.steering.lost()
    }

    /// Closes all connections, and accepts no more: see [`Endpoint::close`].
    pub fn close(&self, error_code: VarInt, reason: &[u8]) {
        self.all.iter().for_each(|endpoint| endpoint.close(error_code, reason));
    }

    /// Waits until all connections are over: see [`Endpoint::wait_idle`].
    pub async fn wait_idle(&self) {
        for endpoint in &self.all {
            endpoint.wait_idle().await;
        }
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        self.accepting.abort_all();
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoints").field("address", &self.address).finish_non_exhaustive()
    }
}
