//! Control messages: what the kernel tells of a datagram beside its bytes, and what it is told.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::datagram::Ecn;

/// Room for all that is asked for, in words: from a socket of IPv6, by which IPv4 comes too, the addresses of both, the class, what
/// has come together, and what was dropped: 144 bytes.
pub(super) type Room = [u64; 24];

/// Of a type of service those that tell of congestion; the others are the service (DSCP).
const ECN_BITS: u8 = 0b11;

/// What came with a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) local: Option<IpAddr>,
    pub(super) ecn: Option<Ecn>,
    pub(super) segment_bytes: Option<usize>,
    /// Datagrams that the socket had no room for, since it was made.
    pub(super) dropped: Option<u32>,
}

impl Told {
    /// # Safety
    /// The kernel has filled in the message's control buffer, and its length.
    pub(super) unsafe fn of(message: &libc::msghdr) -> Told {
        let mut told = Told::default();
        // SAFETY: the control buffer is filled in, as the caller promises.
        let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
        while !header.is_null() {
            // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie within the buffer whole.
            let cmsg = unsafe { *header };
            // SAFETY: CMSG_LEN reads nothing: it computes a length.
            let bytes =
                (cmsg.cmsg_len as usize).saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            // SAFETY: so many bytes follow the header.
            let data = unsafe { Data { at: libc::CMSG_DATA(header), bytes } };
            match (cmsg.cmsg_level, cmsg.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // Not where it was sent to, which may be a broadcast, but by which address it has come.
                    let info = data.read::<libc::in_pktinfo>();
                    let octets = info.map(|info| info.ipi_spec_dst.s_addr.to_ne_bytes());
                    told.local = octets.map(|octets| Ipv4Addr::from(octets).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.read::<libc::in6_pktinfo>();
                    let address = info.map(|info| Ipv6Addr::from(info.ipi6_addr.s6_addr));
                    told.local =
                        address.filter(|address| !address.is_multicast()).map(IpAddr::from);
                }
                // IPv4 tells a byte, IPv6 an int, whose first byte it is on a machine that is little-endian.
                (libc::IPPROTO_IP, libc::IP_TOS) => told.ecn = data.read::<u8>().and_then(Ecn::of),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    told.ecn = data.read::<i32>().and_then(|class| Ecn::of(class as u8));
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    told.segment_bytes = data.read::<i32>().and_then(|bytes| bytes.try_into().ok());
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => told.dropped = data.read(),
                _ => {}
            }
            // SAFETY: the header is one of the control buffer, which is filled in.
            header = unsafe { libc::CMSG_NXTHDR(message, header) };
        }
        told
    }
}

/// What a control message carries.
struct Data {
    at: *const u8,
    bytes: usize,
}

impl Data {
    fn read<T: Copy>(&self) -> Option<T> {
        // SAFETY: as many bytes are there, and what is read of the kernel's plain structures may have any bits.
        (self.bytes >= size_of::<T>()).then(|| unsafe { self.at.cast::<T>().read_unaligned() })
    }
}

/// What the kernel is to do with a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) local: Option<IpAddr>,
    pub(super) ecn: Option<Ecn>,
    pub(super) segment_bytes: Option<u16>,
}

impl Wanted {
    /// Writes it to a message's control buffer. `is_ipv6` is of the socket, and its type of service but for the two bits of ECN.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` if the local address is of IPv6, and the socket is not.
    pub(super) fn write(
        self,
        is_ipv6: bool,
        service: u8,
        room: &mut Room,
        message: &mut libc::msghdr,
    ) -> io::Result<()> {
        let mut control = Writer { room, used: 0 };
        match self.local {
            None => {}
            Some(IpAddr::V4(address)) if !is_ipv6 => {
                // SAFETY: it may be all zero.
                let mut info: libc::in_pktinfo = unsafe { mem::zeroed() };
                info.ipi_spec_dst.s_addr = u32::from_ne_bytes(address.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(_)) if !is_ipv6 => {
                return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
            }
            Some(address) => {
                // SAFETY: it may be all zero.
                let mut info: libc::in6_pktinfo = unsafe { mem::zeroed() };
                let address = match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(address) => address,
                };
                info.ipi6_addr.s6_addr = address.octets();
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
        if let Some(ecn) = self.ecn {
            let bits = libc::c_int::from(service & !ECN_BITS) | ecn.bits() as libc::c_int;
            // A socket of IPv6 may send to IPv4: each takes its own, and passes over the other.
            control.push(libc::IPPROTO_IP, libc::IP_TOS, bits);
            if is_ipv6 {
                control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, bits);
            }
        }
        if let Some(bytes) = self.segment_bytes {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, bytes);
        }
        let used = control.used;
        message.msg_control =
            if used > 0 { room.as_mut_ptr().cast() } else { std::ptr::null_mut() };
        message.msg_controllen = used as _;
        Ok(())
    }
}

struct Writer<'a> {
    room: &'a mut Room,
    used: usize,
}

impl Writer<'_> {
    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, value: T) {
        let bytes = size_of::<T>() as u32;
        // SAFETY: both compute lengths, and read nothing.
        let (len, space) =
            unsafe { (libc::CMSG_LEN(bytes) as usize, libc::CMSG_SPACE(bytes) as usize) };
        assert!(self.used + space <= size_of::<Room>(), "there is room for all that can be wanted");
        let at = self.used;
        self.used += space;
        // SAFETY: the header and the value lie within the room, which is aligned for a header, as the lengths are that CMSG_SPACE gives.
        unsafe {
            let header = self.room.as_mut_ptr().cast::<u8>().add(at).cast::<libc::cmsghdr>();
            let mut cmsg: libc::cmsghdr = mem::zeroed();
            (cmsg.cmsg_len, cmsg.cmsg_level, cmsg.cmsg_type) = (len as _, level, kind);
            header.write(cmsg);
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_all_that_can_be_told() {
        // SAFETY: it computes a length.
        let space = |bytes: usize| unsafe { libc::CMSG_SPACE(bytes as u32) } as usize;
        let addresses =
            space(size_of::<libc::in_pktinfo>()) + space(size_of::<libc::in6_pktinfo>());
        // A class of either family, what has come together, what was dropped.
        let told = addresses + 2 * space(size_of::<libc::c_int>()) + space(4) + space(4);
        assert!(told <= size_of::<Room>(), "{told}");
    }

    #[test]
    fn congestion_leaves_the_service_alone() {
        let wanted = Wanted { ecn: Some(Ecn::Ect0), ..Wanted::default() };
        for is_ipv6 in [false, true] {
            let mut room = Room::default();
            // SAFETY: it may be all zero.
            let mut message: libc::msghdr = unsafe { mem::zeroed() };
            wanted.write(is_ipv6, 0xb9, &mut room, &mut message).expect("it can be had");
            // SAFETY: the buffer is filled in, and the header lies in it.
            let value = unsafe {
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned()
            };
            assert_eq!(value, 0xba);
        }
    }
}
