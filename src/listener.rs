//! A listening socket.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use socket2::{Domain, SockRef, Socket, Type};

use crate::address::{Address, IntoAddress};

/// Connections that the kernel may hold for us until they are accepted. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// A listening socket: TCP over IPv4 or IPv6, or a Unix socket.
///
/// The socket file that binding to a Unix path has made is removed when the listener, or the server it was given
/// to, is gone.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    file: Option<SocketFile>,
}

/// A socket file, removed when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens at an address, for instance `"127.0.0.1:6380"`, `"[::1]:0"` or `"unix:/run/server.sock"`.
    ///
    /// TCP listeners have `SO_REUSEADDR`, so that a restart finds its port, and `TCP_NODELAY`, which accepted
    /// connections inherit.
    ///
    /// # Errors
    /// What socket(2), bind(2) and listen(2) say, for instance `EADDRINUSE`;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a text that is no address.
    pub fn bind(address: impl IntoAddress) -> io::Result<Listener> {
        let address = address.into_address()?;
        let socket_address = address.to_sock_addr()?;
        let domain = Domain::from(i32::from(socket_address.family()));
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        if let Address::Tcp(_) = address {
            socket.set_reuse_address(true)?;
            socket.set_tcp_nodelay(true)?;
        }
        socket.bind(&socket_address)?;
        let file = match address {
            Address::Unix(path) => Some(SocketFile(path)),
            _ => None,
        };
        socket.listen(BACKLOG)?;
        Ok(Listener { socket: socket.into(), file })
    }

    /// The address it listens at, with the port that was chosen if 0 was asked for.
    ///
    /// # Errors
    /// `ENOBUFS` if the kernel has no memory.
    pub fn local_addr(&self) -> io::Result<Address> {
        Address::from_sock_addr(&SockRef::from(&self.socket).local_addr()?)
    }

    pub(crate) fn into_parts(self) -> (OwnedFd, Option<SocketFile>) {
        (self.socket, self.file)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes over a listener that something else has bound.
impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Listener {
        Listener { socket: listener.into(), file: None }
    }
}

/// Takes over a listener that something else has bound. Its socket file is left alone.
impl From<std::os::unix::net::UnixListener> for Listener {
    fn from(listener: std::os::unix::net::UnixListener) -> Listener {
        Listener { socket: listener.into(), file: None }
    }
}
