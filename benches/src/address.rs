//! Where a server listens: a TCP address or a Unix socket path, in one notation.
//!
//! `127.0.0.1:20000` is TCP; `unix:/tmp/echo.sock` is a Unix stream socket. Only loopback is
//! accepted for TCP: the comparison never sends a byte to another machine.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// A listen or connect address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address on the loopback interface.
    Tcp(SocketAddr),
    /// A Unix stream socket, by path.
    Unix(PathBuf),
}

impl Address {
    /// The TCP address, or an error for a server that speaks nothing else.
    pub fn tcp(&self) -> io::Result<SocketAddr> {
        match self {
            Address::Tcp(addr) => Ok(*addr),
            Address::Unix(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "this server listens on TCP only"))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(addr) => write!(f, "{addr}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("unix: needs a path".into());
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let addr: SocketAddr = text
            .parse()
            .map_err(|_| format!("{text:?} is neither an IP address with a port nor unix:PATH"))?;
        let loopback = match addr.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback(),
        };
        if !loopback {
            return Err(format!("{addr} is not a loopback address"));
        }
        Ok(Address::Tcp(addr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_survive_a_round_trip() {
        for text in ["127.0.0.1:20000", "[::1]:20000", "unix:/tmp/a b.sock"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn addresses_of_other_machines_are_refused() {
        assert!("10.0.0.1:80".parse::<Address>().is_err());
        assert!("0.0.0.0:80".parse::<Address>().is_err());
        assert!("unix:".parse::<Address>().is_err());
    }
}
