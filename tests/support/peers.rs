//! Ways to a server, where connecting may fail or be raw.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;

use duopoll::Address;
use socket2::SockAddr;

use super::{PATIENCE, Peer};

/// A peer, unless nobody listens.
pub fn try_connect(address: &Address) -> io::Result<Peer> {
    let peer = match address {
        Address::Tcp(address) => Peer::Tcp(std::net::TcpStream::connect(address)?),
        Address::Abstract(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            Peer::Unix(UnixStream::connect_addr(&address)?)
        }
        other => panic!("{other} is no address to connect to"),
    };
    peer.set_timeout(PATIENCE / 6);
    Ok(peer)
}

/// The address as the kernel takes it.
pub fn sock_addr(address: &Address) -> SockAddr {
    match address {
        Address::Tcp(address) => SockAddr::from(*address),
        Address::Abstract(name) => {
            let path = [b"\0", &name[..]].concat();
            SockAddr::unix(OsStr::from_bytes(&path)).expect("a name")
        }
        other => panic!("{other} is no address to connect to"),
    }
}
