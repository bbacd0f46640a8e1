//! Where to listen.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::SockAddr;

/// The address of a stream socket: TCP over IPv4 or IPv6, or a Unix socket.
///
/// As text: `127.0.0.1:6380`, `[::1]:6380`, `localhost:6380`, `unix:/run/server.sock`, and `unix:@name` for Linux's
/// abstract names. A host name is resolved when the text is parsed, which blocks; its first address is taken.
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
    pub(crate) fn to_sock_addr(&self) -> io::Result<SockAddr> {
        match self {
            Address::Tcp(address) => Ok((*address).into()),
            Address::Unix(path) => SockAddr::unix(path),
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
                Some(name) => Ok(Address::Abstract(name.into())),
                None => Ok(Address::Unix(Path::new(path).to_owned())),
            };
        }
        let mut resolved = text.to_socket_addrs().map_err(|error| {
            invalid(format!("`{text}` is neither HOST:PORT nor unix:PATH ({error})"))
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

impl IntoAddress for &Address {
    fn into_address(self) -> io::Result<Address> {
        Ok(self.clone())
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
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
            Address::Unnamed => f.write_str("unix:"),
        }
    }
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
    fn nonsense_is_named() {
        for text in ["", "127.0.0.1", "unix:", "127.0.0.1:70000"] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{text}");
        }
    }
}
