//! Addresses as the kernel has them.

use std::fmt;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use socket2::SockAddr;

use crate::address::Address;

/// What names the peers of a socket: a [`SocketAddr`] of UDP, an [`Address`] of a Unix socket.
pub trait Peer: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Whether what is received has control messages. A Unix socket's could be descriptors, which the kernel closes if there is no room.
    #[doc(hidden)]
    const HAS_CONTROL: bool;
    /// Writes it for the kernel, and says how long it is.
    #[doc(hidden)]
    fn write(&self, name: &mut Name) -> io::Result<libc::socklen_t>;
    /// What the kernel has written.
    #[doc(hidden)]
    fn read(name: &Name, len: libc::socklen_t) -> io::Result<Self>;
}

/// Room for any address. Nobody else has a name for it.
#[derive(Clone, Copy)]
#[repr(C)]
pub union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    unix: libc::sockaddr_un,
}

impl Name {
    /// For the kernel to write to.
    pub(super) const ROOM: libc::socklen_t = size_of::<Name>() as libc::socklen_t;

    /// Whether the kernel has written one of IPv6.
    pub(super) fn is_ipv6(&self) -> bool {
        // SAFETY: each variant begins with the family.
        libc::c_int::from(unsafe { self.family }) == libc::AF_INET6
    }

    pub(super) fn empty() -> Name {
        // SAFETY: it may be all zero.
        unsafe { mem::zeroed() }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Name")
    }
}

impl Peer for SocketAddr {
    const HAS_CONTROL: bool = true;

    fn write(&self, name: &mut Name) -> io::Result<libc::socklen_t> {
        let bytes = match self {
            SocketAddr::V4(address) => {
                name.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                name.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Ok(bytes as libc::socklen_t)
    }

    fn read(name: &Name, _: libc::socklen_t) -> io::Result<SocketAddr> {
        // SAFETY: each variant begins with the family, which says which one it is.
        unsafe {
            match libc::c_int::from(name.family) {
                libc::AF_INET => {
                    let ip = Ipv4Addr::from(name.v4.sin_addr.s_addr.to_ne_bytes());
                    Ok(SocketAddrV4::new(ip, u16::from_be(name.v4.sin_port)).into())
                }
                libc::AF_INET6 => {
                    let v6 = name.v6;
                    let (ip, port) =
                        (Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port));
                    Ok(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
                }
                _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
            }
        }
    }
}

impl Peer for Address {
    const HAS_CONTROL: bool = false;

    fn write(&self, name: &mut Name) -> io::Result<libc::socklen_t> {
        let address = self.to_sock_addr()?;
        let len = (address.len() as usize).min(size_of::<Name>());
        // SAFETY: so many bytes are there, and there is room for them; any bits are a name.
        unsafe {
            let bytes = std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), len);
            std::ptr::from_mut(name).cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), len);
        }
        Ok(len as libc::socklen_t)
    }

    fn read(name: &Name, len: libc::socklen_t) -> io::Result<Address> {
        if len == 0 {
            // Who was not bound has no name at all.
            return Ok(Address::Unnamed);
        }
        // SAFETY: a storage is as large as any address, and so many bytes were written by the kernel.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, storage_len| {
                storage.cast::<Name>().write(*name);
                storage_len.write(len);
                Ok(())
            })?
        };
        Address::from_sock_addr(&address)
    }
}
