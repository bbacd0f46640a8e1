//! The address of the other end, remembered for when the kernel no longer knows it.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

/// Every connection has one, and most are of IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// That of a Unix socket, or nobody has said.
    #[default]
    Unknown,
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
}

impl Peer {
    pub(super) fn get(&self) -> Option<SocketAddr> {
        match self {
            Peer::Unknown => None,
            Peer::V4(address) => Some((*address).into()),
            Peer::V6(address) => Some((**address).into()),
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        match address {
            SocketAddr::V4(address) => Peer::V4(address),
            SocketAddr::V6(address) => Peer::V6(Box::new(address)),
        }
    }
}
