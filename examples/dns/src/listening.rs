//! Where the resolver listens: over UDP with a socket for each poller, and over TCP at the same port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use duopoll::task::TaskGroup;
use duopoll::udp::UdpSocket;
use duopoll::{Address, Listener, Pollers};
use pollster::block_on;

use crate::resolver::Resolver;
use crate::udp;

/// What may wait in the kernel, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Ports that are tried where any will do.
const TRIES: usize = 8;

/// Serves an address over UDP from now on. The listener is for TCP.
pub(crate) fn listen(
    address: SocketAddr,
    pollers: &Pollers,
    resolver: &Arc<Resolver>,
    tasks: &TaskGroup,
) -> io::Result<Listener> {
    for tries_left in (0..TRIES).rev() {
        // First: nobody shares a port of TCP, so the port is one that only we will have.
        let listener = Listener::options().only_v6(true).bind(address)?;
        let Address::Tcp(at) = listener.local_addr()? else { unreachable!("it is of TCP") };
        match serve_udp(at, pollers, resolver, tasks) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && address.port() == 0
                    && tries_left > 0 => {}
            served => return served.map(|()| listener),
        }
    }
    unreachable!("the last try returns")
}

fn serve_udp(
    address: SocketAddr,
    pollers: &Pollers,
    resolver: &Arc<Resolver>,
    tasks: &TaskGroup,
) -> io::Result<()> {
    let count = pollers.count();
    let options = UdpSocket::options()
        .only_v6(true)
        .reuse_port(count > 1)
        .local_address(address.ip().is_unspecified())
        .receive_buffer_bytes(RECEIVE_BUFFER_BYTES)
        .count_drops(true);
    // All of them, before one serves.
    let bind = |index| pollers.spawn_on(index, move || async move { options.bind(address).await });
    let bound = (0..count).map(bind).collect::<Vec<_>>().into_iter();
    let bound = bound.map(|bound| block_on(bound).map_err(io::Error::other)?);
    let sockets = bound.collect::<io::Result<Vec<_>>>()?;
    for (index, socket) in sockets.into_iter().enumerate() {
        let (resolver, tasks) = (resolver.clone(), tasks.clone());
        let serves = pollers.spawn_on(index, move || async move {
            tasks.clone().spawn_local(udp::serve(socket, resolver, tasks));
        });
        block_on(serves).map_err(io::Error::other)?;
    }
    Ok(())
}
