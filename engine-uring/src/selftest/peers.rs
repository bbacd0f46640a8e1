//! Sockets for the tests, and who talks on them.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
#[cfg(feature = "zerocopy")]
use rustix::net::{connect, getsockname, socket_with};

/// Two connected Unix stream sockets.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// A TCP listener on the loopback interface, at a port that the kernel chooses.
#[cfg(feature = "zerocopy")]
pub(super) fn tcp_listener() -> io::Result<OwnedFd> {
    Ok(std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?.into())
}

/// A connection to a listener.
#[cfg(feature = "zerocopy")]
pub(super) fn connect_to(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let address = getsockname(listener)?;
    let (family, flags) = (address.address_family(), SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(socket)
}

pub(super) fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    rustix::io::write(fd, bytes)?;
    Ok(())
}
