//! How a socket is bound.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::UdpSocket;
use crate::address::Address;
use crate::named::{Doing, named};

/// How a [`UdpSocket`] is bound: see [`UdpSocket::options`].
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions {
    only_v6: Option<bool>,
    reuse_port: bool,
    broadcast: bool,
    receive_buffer_bytes: Option<usize>,
    send_buffer_bytes: Option<usize>,
    hops: Option<u32>,
    tos: Option<u8>,
    freebind: bool,
    local_address: bool,
    ecn: bool,
    gro: bool,
    counts_drops: bool,
    keeps_apart: bool,
}

impl UdpOptions {
    /// Whether a socket of IPv6 is for nothing else (`IPV6_V6ONLY`). Default: the system's, mostly no.
    pub fn only_v6(mut self, only_v6: bool) -> UdpOptions {
        self.only_v6 = Some(only_v6);
        self
    }

    /// Others that say so, too, may be bound to the same address, and the kernel chooses by the sender's address which one gets a datagram
    /// (`SO_REUSEPORT`). Not with port 0: the kernel may choose one that somebody else has who has said so.
    pub fn reuse_port(mut self, reuse_port: bool) -> UdpOptions {
        self.reuse_port = reuse_port;
        self
    }

    /// May send to broadcast addresses (`SO_BROADCAST`).
    pub fn broadcast(mut self, broadcast: bool) -> UdpOptions {
        self.broadcast = broadcast;
        self
    }

    /// How much may wait in the kernel to be received (`SO_RCVBUF`), in bytes, which a small datagram needs some hundred of beside its
    /// own. The kernel doubles it, and cuts what is more than `net.core.rmem_max`.
    pub fn receive_buffer_bytes(mut self, bytes: usize) -> UdpOptions {
        self.receive_buffer_bytes = Some(bytes);
        self
    }

    /// The same to be sent (`SO_SNDBUF`).
    pub fn send_buffer_bytes(mut self, bytes: usize) -> UdpOptions {
        self.send_buffer_bytes = Some(bytes);
        self
    }

    /// How many hops a datagram may take (`IP_TTL`, `IPV6_UNICAST_HOPS`), from 1 to 255.
    pub fn hops(mut self, hops: u32) -> UdpOptions {
        self.hops = Some(hops);
        self
    }

    /// The type of service (`IP_TOS`, `IPV6_TCLASS`).
    pub fn tos(mut self, tos: u8) -> UdpOptions {
        self.tos = Some(tos);
        self
    }

    /// The address need not be there yet (`IP_FREEBIND`).
    pub fn freebind(mut self, freebind: bool) -> UdpOptions {
        self.freebind = freebind;
        self
    }

    /// Datagrams tell to which address they were sent (`IP_PKTINFO`, `IPV6_RECVPKTINFO`), so that the
    /// [reply](super::Outgoing::reply) comes from there.
    pub fn local_address(mut self, tells: bool) -> UdpOptions {
        self.local_address = tells;
        self
    }

    /// Datagrams tell of congestion (`IP_RECVTOS`, `IPV6_RECVTCLASS`).
    pub fn ecn(mut self, tells: bool) -> UdpOptions {
        self.ecn = tells;
        self
    }

    /// Datagrams of one sender and one size may come together, up to 64 KiB of them (`UDP_GRO`): see
    /// [`Datagram::segments`](super::Datagram::segments).
    pub fn gro(mut self, gro: bool) -> UdpOptions {
        self.gro = gro;
        self
    }

    /// Has the kernel tell how many datagrams the socket had no room for (`SO_RXQ_OVFL`): see [`UdpSocket::dropped`].
    pub fn count_drops(mut self, counts: bool) -> UdpOptions {
        self.counts_drops = counts;
        self
    }

    /// Datagrams of one size to one peer that are sent together are handed to the kernel as one, which cuts them apart (`UDP_SEGMENT`);
    /// where it cannot, that is found out and not done again. Default: yes.
    pub fn coalesce(mut self, coalesces: bool) -> UdpOptions {
        self.keeps_apart = !coalesces;
        self
    }

    pub(super) fn has_gro(&self) -> bool {
        self.gro
    }

    pub(super) fn coalesces(&self) -> bool {
        !self.keeps_apart
    }

    /// Binds a socket; port 0 has the kernel choose one. It is on the poller of this thread, elsewhere on one of those that the thread has
    /// [entered](crate::Pollers::enter), or else on a [global one](crate::Pollers::global). Of several addresses of a name the first that can be bound counts.
    ///
    /// # Errors
    /// The kernel's, with the address: `EADDRINUSE`, `EACCES` below port 1024; what an option is refused with, and its name; what there is to be said
    /// of a name.
    pub async fn bind(&self, address: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        UdpSocket::watched(self.bound_at(address)?, self).await
    }

    /// A socket that is connected to a peer from the beginning, by a port that the kernel chooses: nothing comes from anybody else.
    ///
    /// # Errors
    /// The kernel's: `ENETUNREACH`; what an option is refused with.
    pub async fn connect(&self, peer: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(peer), Type::DGRAM.nonblocking(), None)?;
        self.apply(socket.as_fd(), peer.is_ipv6())?;
        socket.connect(&SockAddr::from(peer))?;
        UdpSocket::watched(socket.into(), self).await
    }

    pub(super) fn bound_at(&self, address: impl ToSocketAddrs) -> io::Result<OwnedFd> {
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address");
        for address in address.to_socket_addrs()? {
            match self.bound(address) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = named(error, Doing::Binding, &Address::from(address)),
            }
        }
        Err(last)
    }

    /// So many sockets, all at one address, which the first of them finds.
    pub(crate) fn bound_each(
        &self,
        address: impl ToSocketAddrs,
        count: usize,
    ) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
        // The first is bound as one that does not share: nobody else is there, and a port that the kernel chooses is its own.
        let first = self.bound_at(address)?;
        let address = super::local_addr(first.as_fd())?;
        if count > 1 {
            SockRef::from(&first).set_reuse_port(true)?;
        }
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(self.reuse_port(true).bound_at(address)?);
        }
        Ok((address, sockets))
    }

    fn bound(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), None)?;
        if let (Some(only_v6), true) = (self.only_v6, address.is_ipv6()) {
            option("only_v6", socket.set_only_v6(only_v6))?;
        }
        self.apply(socket.as_fd(), address.is_ipv6())?;
        socket.bind(&SockAddr::from(address))?;
        Ok(socket.into())
    }

    /// Sets what is to be set on a socket.
    pub(super) fn apply(&self, socket: BorrowedFd<'_>, is_ipv6: bool) -> io::Result<()> {
        let known = SockRef::from(&socket);
        if self.reuse_port {
            option("reuse_port", known.set_reuse_port(true))?;
        }
        if self.broadcast {
            option("broadcast", known.set_broadcast(true))?;
        }
        // The kernel takes an int, and cuts it to what it allows.
        let int = |bytes: usize| bytes.min(libc::c_int::MAX as usize);
        if let Some(bytes) = self.receive_buffer_bytes {
            option("receive_buffer_bytes", known.set_recv_buffer_size(int(bytes)))?;
        }
        if let Some(bytes) = self.send_buffer_bytes {
            option("send_buffer_bytes", known.set_send_buffer_size(int(bytes)))?;
        }
        // A socket of IPv6 may have to do with IPv4, and has the options of both.
        let both = |name, v4, v6, value| {
            option(name, set(socket, libc::IPPROTO_IP, v4, value))?;
            if is_ipv6 { option(name, set(socket, libc::IPPROTO_IPV6, v6, value)) } else { Ok(()) }
        };
        if let Some(hops) = self.hops {
            let hops = libc::c_int::try_from(hops).unwrap_or(libc::c_int::MAX);
            both("hops", libc::IP_TTL, libc::IPV6_UNICAST_HOPS, hops)?;
        }
        if let Some(tos) = self.tos {
            both("tos", libc::IP_TOS, libc::IPV6_TCLASS, tos.into())?;
        }
        if self.freebind {
            option("freebind", set(socket, libc::IPPROTO_IP, libc::IP_FREEBIND, 1))?;
        }
        if self.local_address {
            both("local_address", libc::IP_PKTINFO, libc::IPV6_RECVPKTINFO, 1)?;
        }
        if self.ecn {
            both("ecn", libc::IP_RECVTOS, libc::IPV6_RECVTCLASS, 1)?;
        }
        if self.gro {
            option("gro", set(socket, libc::SOL_UDP, libc::UDP_GRO, 1))?;
        }
        if self.counts_drops {
            option("count_drops", set(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1))?;
        }
        Ok(())
    }
}

/// What the kernel says of an option, with its name.
fn option(name: &str, set: io::Result<()>) -> io::Result<()> {
    set.map_err(|error| io::Error::new(error.kind(), format!("the option {name}: {error}")))
}

fn set(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads an int.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len)
    };
    if set == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Membership of a group of multicast.
impl UdpSocket {
    /// Joins a group of IPv4, by the interface that has this address; 0.0.0.0 has the kernel choose one. By which interface it *sends*, with
    /// how many hops, and whether that comes back, is another matter: `socket2::SockRef::from(&socket)` sets it.
    ///
    /// # Errors
    /// The kernel's: `ENODEV` if no interface fits, `EADDRINUSE` if it is a member already.
    pub fn join_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        SockRef::from(&self.as_fd()).join_multicast_v4(&group, &interface)
    }

    /// Leaves it.
    ///
    /// # Errors
    /// The kernel's: `EADDRNOTAVAIL` if it is no member.
    pub fn leave_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        SockRef::from(&self.as_fd()).leave_multicast_v4(&group, &interface)
    }

    /// Joins a group of IPv6, by the interface of that index; 0 has the kernel choose one.
    ///
    /// # Errors
    /// As for [`join_multicast_v4`](UdpSocket::join_multicast_v4).
    pub fn join_multicast_v6(&self, group: Ipv6Addr, interface: u32) -> io::Result<()> {
        SockRef::from(&self.as_fd()).join_multicast_v6(&group, interface)
    }

    /// Leaves it.
    ///
    /// # Errors
    /// As for [`leave_multicast_v4`](UdpSocket::leave_multicast_v4).
    pub fn leave_multicast_v6(&self, group: Ipv6Addr, interface: u32) -> io::Result<()> {
        SockRef::from(&self.as_fd()).leave_multicast_v6(&group, interface)
    }
}
