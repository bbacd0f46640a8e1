//! What is the same for every server, whatever runs it.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ServerConfig};

use crate::sys;
use crate::web::certificate;

/// What may wait in a server's socket. The kernel doubles it, and cuts it to `net.core.rmem_max` before.
pub const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// quinn's defaults, with the certificate of the run.
pub fn server(folder: &Path) -> io::Result<ServerConfig> {
    let mut tls = Arc::unwrap_or_clone(certificate::server(folder)?);
    // The client names no protocol, and QUIC is strict about it.
    tls.alpn_protocols.clear();
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    Ok(ServerConfig::with_crypto(Arc::new(crypto)))
}

/// quinn's defaults, for a client that trusts that certificate.
pub fn client(folder: &Path) -> io::Result<ClientConfig> {
    let crypto = certificate::client(folder)?;
    let crypto = QuicClientConfig::try_from(crypto).map_err(io::Error::other)?;
    Ok(ClientConfig::new(Arc::new(crypto)))
}

/// A server's socket where the library binds none itself.
pub fn bind(listen: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    let bytes = RECEIVE_BUFFER_BYTES as libc::c_int;
    sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)?;
    Ok(socket)
}
