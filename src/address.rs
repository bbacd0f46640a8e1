//! Where to listen.

use std::ffi::{CString, OsStr, OsString};
use std::fmt::{self, Write};
use std::io;
use std::net::{SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use socket2::SockAddr;

/// The address of a socket: TCP over IPv4 or IPv6, or a Unix socket, which may be one for datagrams.
///
/// As text: `127.0.0.1:6380`, `[::1]:6380`, `[fe80::1%eth0]:6380`, `localhost:6380`, `unix:/run/server.sock`, and `unix:@name`
/// for Linux's abstract names. In names and paths, `%XX` is the byte with that hexadecimal number; a path that begins with `@`
/// is written with `%40`. Every address but an unnamed one is what its text parses to. A host name is resolved when the text
/// is parsed, which blocks; its first address is taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket in the file system.
    Unix(PathBuf),
    /// A Unix socket with an abstract name, which is no file.
    Abstract(Vec<u8>),
    /// The address of a Unix socket that was not bound, as clients are.
    Unnamed,
}

impl Address {
    /// The address of TCP, if it is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            _ => None,
        }
    }

    pub(crate) fn to_sock_addr(&self) -> io::Result<SockAddr> {
        match self {
            Address::Tcp(address) => Ok((*address).into()),
            Address::Unix(path) => {
                let invalid = |message| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                match path.as_os_str().as_bytes() {
                    [] => invalid("a Unix socket needs a path"),
                    path if path.contains(&0) => invalid("a path has no NUL in it"),
                    _ => SockAddr::unix(path),
                }
            }
            Address::Abstract(name) => {
                let mut path = vec![0];
                path.extend_from_slice(name);
                SockAddr::unix(OsStr::from_bytes(&path))
            }
            Address::Unnamed => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "a Unix socket needs a name"))
            }
        }
    }

    pub(crate) fn from_sock_addr(address: &SockAddr) -> io::Result<Address> {
        if let Some(address) = address.as_socket() {
            return Ok(Address::Tcp(address));
        }
        if !address.is_unix() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "neither TCP nor Unix"));
        }
        if let Some(path) = address.as_pathname() {
            return Ok(Address::Unix(path.to_owned()));
        }
        Ok(match address.as_abstract_namespace() {
            Some(name) => Address::Abstract(name.to_owned()),
            None => Address::Unnamed,
        })
    }
}

impl FromStr for Address {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Address> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.strip_prefix('@') {
                _ if path.is_empty() => Err(invalid("`unix:` needs a path or @name".into())),
                Some(name) => Ok(Address::Abstract(unescape(name))),
                None => Ok(Address::Unix(OsString::from_vec(unescape(path)).into())),
            };
        }
        if let Some(address) = numeric(text) {
            return Ok(Address::Tcp(address));
        }
        let mut resolved = text.to_socket_addrs().map_err(|error| {
            let is_name = error.kind() != io::ErrorKind::InvalidInput;
            match text.strip_prefix(':').filter(|port| port.parse::<u16>().is_ok()) {
                Some(port) => {
                    invalid(format!("`{text}` names no host: 0.0.0.0:{port}, [::]:{port}?"))
                }
                None if is_name => io::Error::new(error.kind(), format!("`{text}`: {error}")),
                None => invalid(format!("`{text}` is neither HOST:PORT nor unix:PATH ({error})")),
            }
        })?;
        let first = resolved.next();
        first.map(Address::Tcp).ok_or_else(|| invalid(format!("`{text}` resolves to nothing")))
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Address {
        address.clone()
    }
}

/// Only of TCP; the error is the address as it was.
impl TryFrom<Address> for SocketAddr {
    type Error = Address;

    fn try_from(address: Address) -> Result<SocketAddr, Address> {
        match address {
            Address::Tcp(address) => Ok(address),
            other => Err(other),
        }
    }
}

/// What can be taken for an address: an [`Address`], a `SocketAddr`, or a text as [`Address`] describes it.
pub trait IntoAddress {
    /// The address.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a text that is no address.
    fn into_address(self) -> io::Result<Address>;
}

impl<T: Into<Address>> IntoAddress for T {
    fn into_address(self) -> io::Result<Address> {
        Ok(self.into())
    }
}

impl IntoAddress for String {
    fn into_address(self) -> io::Result<Address> {
        self.parse()
    }
}

impl IntoAddress for &str {
    fn into_address(self) -> io::Result<Address> {
        self.parse()
    }
}

impl IntoAddress for &String {
    fn into_address(self) -> io::Result<Address> {
        self.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => {
                // An abstract name would begin like this.
                let at = path.as_os_str().as_bytes().first() == Some(&b'@');
                f.write_str(if at { "unix:%40" } else { "unix:" })?;
                escape(&path.as_os_str().as_bytes()[usize::from(at)..], f)
            }
            Address::Abstract(name) => {
                f.write_str("unix:@")?;
                escape(name, f)
            }
            Address::Unnamed => f.write_str("unix:"),
        }
    }
}

/// A numeric address of TCP, whose scope may be the name of an interface.
pub(crate) fn numeric(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.strip_prefix('[')?.rsplit_once("]:")?;
    let (host, zone) = host.split_once('%')?;
    let scope = interface(zone)?;
    Some(SocketAddrV6::new(host.parse().ok()?, port.parse().ok()?, 0, scope).into())
}

/// The number of an interface.
fn interface(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a string.
    let number = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (number != 0).then_some(number)
}

/// Text for bytes, whatever they are: what is not printed as it is becomes `%XX`.
fn escape(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char == '%' || char.is_control() {
                let mut utf8 = [0; 4];
                escape_all(char.encode_utf8(&mut utf8).as_bytes(), f)?;
            } else {
                f.write_char(char)?;
            }
        }
        escape_all(chunk.invalid(), f)?;
    }
    Ok(())
}

fn escape_all(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "%{byte:02X}"))
}

/// The bytes of such a text. A `%` that no two digits follow stands for itself.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let digit = |at: usize| char::from(*behind.get(at)?).to_digit(16);
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                rest = &behind[2..];
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["127.0.0.1:6380", "[::1]:6380", "unix:/run/a.sock", "unix:@name"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            let socket = address.to_sock_addr().unwrap();
            assert_eq!(Address::from_sock_addr(&socket).unwrap(), address);
        }
    }

    #[test]
    fn whatever_the_bytes_text_parses_back() {
        let names: [&[u8]; 9] = [
            b"caf\xc3\xa9",
            b"\xff\xfe",
            b"a\0b",
            b"100%",
            b"%41",
            b"\"quoted\"\n",
            b"@at",
            b"\xe9%zz",
            b" ",
        ];
        for name in names {
            let path = OsStr::from_bytes(name).to_owned().into();
            for address in [Address::Abstract(name.to_vec()), Address::Unix(path)] {
                assert_eq!(address.to_string().parse::<Address>().unwrap(), address, "{address}");
            }
        }
    }

    #[test]
    fn a_scope_may_be_a_name() {
        let Address::Tcp(SocketAddr::V6(address)) = "[fe80::1%lo]:80".parse().unwrap() else {
            panic!("not IPv6");
        };
        assert_eq!((address.port(), address.scope_id()), (80, interface("lo").unwrap()));
        assert!("[fe80::1%no-such-interface]:80".parse::<Address>().is_err());
    }

    #[test]
    fn paths_that_are_none_are_refused() {
        for path in [&b""[..], b"/tmp/a\0b"] {
            let address = Address::Unix(OsStr::from_bytes(path).into());
            assert_eq!(address.to_sock_addr().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn nonsense_is_named() {
        for text in ["", "127.0.0.1", "unix:", "127.0.0.1:70000"] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{text}");
        }
    }
}
