//! Datagrams, as they come and as they go.

use std::net::{IpAddr, SocketAddr};

use crate::Slice;

/// A datagram that has come, or several of one size that have come together: see [`segments`](Datagram::segments).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Datagram<A = SocketAddr> {
    /// Its bytes; none is a datagram, too. Up to 16 KiB they are copied once out of the memory that all sockets of a poller receive
    /// into; more lie where the kernel has put them.
    pub bytes: Slice,
    /// Who has sent it.
    pub from: A,
    /// The address of this machine that it has come to, if [that](super::UdpOptions::local_address) was asked for; none if it was sent to a
    /// group of IPv6. On a socket of IPv6, one of IPv4 is mapped, as `from` is.
    pub local: Option<IpAddr>,
    /// Its bits of congestion notification, if [they](super::UdpOptions::ecn) were asked for. None: not capable of it.
    pub ecn: Option<Ecn>,
    /// With [`gro`](super::UdpOptions::gro): of how many bytes each of those is that have come together; the last may be shorter.
    pub segment_bytes: Option<usize>,
    /// More bytes belonged to it, for which there was no room: of a Unix socket, beyond 64 KiB.
    pub is_cut: bool,
}

impl<A> Datagram<A> {
    /// Each of those that have come together; this one, if it has come alone.
    pub fn segments(&self) -> impl Iterator<Item = Slice> {
        let len = self.bytes.len();
        let step = self.segment_bytes.unwrap_or(len).clamp(1, len.max(1));
        let starts = (0..len.max(1)).step_by(step);
        starts.filter_map(move |start| self.bytes.subslice(start..(start + step).min(len)).ok())
    }
}

/// Explicit congestion notification: what a datagram says of it, if it is capable (RFC 3168).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ecn {
    /// ECT(0).
    Ect0,
    /// ECT(1).
    Ect1,
    /// Congestion was experienced.
    Ce,
}

impl Ecn {
    /// By the two bits of the field of that name; the other six do not matter.
    pub fn of(bits: u8) -> Option<Ecn> {
        match bits & 0b11 {
            0b10 => Some(Ecn::Ect0),
            0b01 => Some(Ecn::Ect1),
            0b11 => Some(Ecn::Ce),
            _ => None,
        }
    }

    /// The two bits.
    pub fn bits(self) -> u8 {
        match self {
            Ecn::Ect0 => 0b10,
            Ecn::Ect1 => 0b01,
            Ecn::Ce => 0b11,
        }
    }
}

/// A datagram to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing<A = SocketAddr> {
    pub(super) bytes: Slice,
    /// None: to whom the socket is connected.
    pub(super) to: Option<A>,
    pub(super) local: Option<IpAddr>,
    pub(super) ecn: Option<Ecn>,
    pub(super) segment_bytes: Option<u16>,
}

impl<A> Outgoing<A> {
    /// To that address.
    pub fn to(bytes: impl Into<Slice>, to: A) -> Outgoing<A> {
        Outgoing { bytes: bytes.into(), to: Some(to), local: None, ecn: None, segment_bytes: None }
    }

    /// To whom the socket is connected.
    pub fn connected(bytes: impl Into<Slice>) -> Outgoing<A> {
        Outgoing { bytes: bytes.into(), to: None, local: None, ecn: None, segment_bytes: None }
    }

    /// In reply: to who has sent it, from the address that it was sent to, if that is known.
    pub fn reply(bytes: impl Into<Slice>, received: &Datagram<A>) -> Outgoing<A>
    where
        A: Clone,
    {
        Outgoing { local: received.local, ..Outgoing::to(bytes, received.from.clone()) }
    }
}

/// For UDP.
impl Outgoing {
    /// From that address of this machine, where the socket is bound to all of them. One that cannot be is an error of the send: `EINVAL`,
    /// `ENETUNREACH`, or `EAFNOSUPPORT` for IPv6 from a socket of IPv4.
    pub fn source(mut self, local: IpAddr) -> Outgoing {
        self.local = Some(local);
        self
    }

    /// With these bits of congestion notification.
    pub fn ecn(mut self, ecn: Ecn) -> Outgoing {
        self.ecn = Some(ecn);
        self
    }

    /// Several of so many bytes each, the last perhaps shorter: up to 64, and 65,487 bytes altogether. The kernel or the device cuts them
    /// apart where it can (`UDP_SEGMENT`). Newer kernels take more segments.
    pub fn segments(mut self, bytes: u16) -> Outgoing {
        self.segment_bytes = Some(bytes);
        self
    }
}
