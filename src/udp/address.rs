//! Addresses as the kernel has them.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// The address of a socket of either family.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    /// For the kernel to write to.
    pub(super) const ROOM: libc::socklen_t = size_of::<Name>() as libc::socklen_t;

    pub(super) fn empty() -> Name {
        // SAFETY: it may be all zero.
        unsafe { mem::zeroed() }
    }

    pub(super) fn of(address: SocketAddr) -> Name {
        let mut name = Name::empty();
        match address {
            SocketAddr::V4(address) => {
                name.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
            }
            SocketAddr::V6(address) => {
                name.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
            }
        }
        name
    }

    pub(super) fn len(&self) -> libc::socklen_t {
        // SAFETY: each variant begins with the family.
        let bytes = match libc::c_int::from(unsafe { self.family }) {
            libc::AF_INET => size_of::<libc::sockaddr_in>(),
            _ => size_of::<libc::sockaddr_in6>(),
        };
        bytes as libc::socklen_t
    }

    /// What the kernel has written.
    pub(super) fn get(&self) -> io::Result<SocketAddr> {
        // SAFETY: each variant begins with the family, which says which one it is.
        unsafe {
            match libc::c_int::from(self.family) {
                libc::AF_INET => {
                    let ip = Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes());
                    Ok(SocketAddrV4::new(ip, u16::from_be(self.v4.sin_port)).into())
                }
                libc::AF_INET6 => {
                    let (ip, port) = (
                        Ipv6Addr::from(self.v6.sin6_addr.s6_addr),
                        u16::from_be(self.v6.sin6_port),
                    );
                    Ok(SocketAddrV6::new(ip, port, self.v6.sin6_flowinfo, self.v6.sin6_scope_id)
                        .into())
                }
                _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
            }
        }
    }
}
