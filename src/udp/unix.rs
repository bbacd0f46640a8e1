//! Datagrams between processes of one machine.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net;

use socket2::{Domain, SockRef, Socket, Type};

use super::DatagramSocket;
use super::sending::Ability;
use crate::address::{Address, IntoAddress};
use crate::named::{Doing, named};

/// A Unix socket for datagrams, with what a [`UdpSocket`](super::UdpSocket) has but what is UDP's own. None is lost: where the peer has no
/// room, sending waits. Up to 64 KiB are received of one.
///
/// ```
/// # duopoll::task::block_on(async {
/// use duopoll::udp::{Outgoing, UnixDatagram};
///
/// let (mut one, mut other) = UnixDatagram::pair().await?;
/// one.send(Outgoing::connected(b"hello")).await?;
/// assert_eq!(other.recv().await?.bytes, b"hello"[..]);
/// # std::io::Result::Ok(()) })??;
/// # Ok::<(), std::io::Error>(())
/// ```
pub type UnixDatagram = DatagramSocket<Address>;

impl UnixDatagram {
    /// Binds a socket, to a path or an abstract name. The file stays when the socket is gone.
    ///
    /// # Errors
    /// The kernel's, with the address: `EADDRINUSE` also for a file that is left; `EAFNOSUPPORT` for an address of another kind.
    pub async fn bind(address: impl IntoAddress) -> io::Result<UnixDatagram> {
        let address = address.into_address()?;
        let bound = |socket: Socket| {
            socket.bind(&unix(&address)?)?;
            Ok(socket)
        };
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).and_then(bound);
        let socket = socket.map_err(|error| named(error, Doing::Binding, &address))?;
        UnixDatagram::from_unix(socket.into()).await
    }

    /// A socket without an address, to which nobody can send.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub async fn unbound() -> io::Result<UnixDatagram> {
        UnixDatagram::from_unix(Socket::new(Domain::UNIX, Type::DGRAM, None)?.into()).await
    }

    /// Two sockets that are connected to each other.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub async fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
        let (one, other) = net::UnixDatagram::pair()?;
        Ok((
            UnixDatagram::from_unix(one.into()).await?,
            UnixDatagram::from_unix(other.into()).await?,
        ))
    }

    /// A socket that is there already, which is made non-blocking.
    ///
    /// # Errors
    /// `EINVAL` if it is none for datagrams, `EAFNOSUPPORT` if it is no Unix socket, `ENOTSOCK` if it is none at all.
    pub async fn from_unix(socket: OwnedFd) -> io::Result<UnixDatagram> {
        if SockRef::from(&socket).domain()? != Domain::UNIX {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        DatagramSocket::on_a_poller(socket, Ability::new(false, 0, false), false).await
    }

    /// From now on [`Outgoing::connected`](super::Outgoing::connected) goes there.
    ///
    /// # Errors
    /// The kernel's: `ENOENT`, `ECONNREFUSED` if nobody has that address; `EAFNOSUPPORT` for one of another kind.
    pub fn connect(&self, peer: impl IntoAddress) -> io::Result<()> {
        SockRef::from(&self.as_fd()).connect(&unix(&peer.into_address()?)?)
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<Address> {
        Address::from_sock_addr(&SockRef::from(&self.as_fd()).local_addr()?)
    }
}

fn unix(address: &Address) -> io::Result<socket2::SockAddr> {
    match address.tcp() {
        Some(_) => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        None => address.to_sock_addr(),
    }
}
