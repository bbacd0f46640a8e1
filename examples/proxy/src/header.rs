//! The PROXY protocol: who a client is, as a proxy before this one tells, and as this one tells.

use std::io;
use std::net::{IpAddr, SocketAddr};

use duopoll::Connection;
use ppp::{HeaderResult, v1, v2};

use crate::config::Version;

/// What a header begins with, of version 1 and of version 2.
const MAGIC: (&[u8], &[u8]) = (b"PROXY ", v2::PROTOCOL_PREFIX);
/// Bytes of a header of version 1, at most.
const LINE_BYTES_MAX: usize = 107;
/// Bytes of a header of version 2 before those that it counts.
const FIXED_BYTES: usize = 16;
/// Bytes of a header of version 2, at most: the specification allows 64 KiB, of which a few hundred are ever seen.
const BYTES_MAX: usize = 4096;

/// The client, and where it has connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// Takes the header off. None if it says nothing of a client, as for a check by the proxy itself.
///
/// # Errors
/// [`InvalidData`](io::ErrorKind::InvalidData) for what is no header; `UnexpectedEof`.
pub(crate) async fn read(connection: &mut Connection) -> io::Result<Option<Ends>> {
    loop {
        let there = connection.input_mut().len().min(BYTES_MAX);
        let bytes = connection.peek(there).await?;
        if let Some(length) = length(bytes)? {
            let ends = parsed(&bytes[..length])?;
            connection.skip(length).await?;
            return Ok(ends);
        }
        if !connection.more().await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// How long the header is that this begins with, if all of it is there.
fn length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let begins = |magic: &[u8]| bytes.iter().zip(magic).all(|(byte, expected)| byte == expected);
    if begins(MAGIC.1) {
        let Some([.., high, low]) = bytes.first_chunk::<FIXED_BYTES>() else { return Ok(None) };
        let length = FIXED_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
        return match length {
            ..=BYTES_MAX => Ok(Some(length).filter(|length| *length <= bytes.len())),
            _ => Err(invalid("it is too long")),
        };
    }
    if !begins(MAGIC.0) {
        return Err(invalid("it begins with something else"));
    }
    let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    match line.windows(2).position(|end| end == b"\r\n") {
        Some(at) => Ok(Some(at + 2)),
        None if line.len() == LINE_BYTES_MAX => Err(invalid("it is too long")),
        None => Ok(None),
    }
}

/// What it says.
fn parsed(header: &[u8]) -> io::Result<Option<Ends>> {
    match HeaderResult::parse(header) {
        HeaderResult::V1(Ok(header)) => Ok(match header.addresses {
            v1::Addresses::Tcp4(of) => Some(Ends {
                source: (of.source_address, of.source_port).into(),
                destination: (of.destination_address, of.destination_port).into(),
            }),
            v1::Addresses::Tcp6(of) => Some(Ends {
                source: (of.source_address, of.source_port).into(),
                destination: (of.destination_address, of.destination_port).into(),
            }),
            v1::Addresses::Unknown => None,
        }),
        HeaderResult::V2(Ok(header)) => Ok(match header.addresses {
            _ if header.command == v2::Command::Local => None,
            v2::Addresses::IPv4(of) => Some(Ends {
                source: (of.source_address, of.source_port).into(),
                destination: (of.destination_address, of.destination_port).into(),
            }),
            v2::Addresses::IPv6(of) => Some(Ends {
                source: (of.source_address, of.source_port).into(),
                destination: (of.destination_address, of.destination_port).into(),
            }),
            v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
        }),
        HeaderResult::V1(Err(error)) => Err(invalid(error)),
        HeaderResult::V2(Err(error)) => Err(invalid(error)),
    }
}

/// The header that tells of these ends, or that nothing is known of them.
pub(crate) fn of(version: Version, ends: Option<Ends>) -> io::Result<Vec<u8>> {
    let ends = ends.map(Ends::in_one_family);
    match version {
        Version::V1 => {
            let addresses = match ends {
                Some(Ends { source, destination }) => v1::Addresses::from((source, destination)),
                None => v1::Addresses::Unknown,
            };
            Ok(addresses.to_string().into_bytes())
        }
        Version::V2 => {
            let (command, addresses) = match ends {
                Some(Ends { source, destination }) => {
                    (v2::Command::Proxy, v2::Addresses::from((source, destination)))
                }
                None => (v2::Command::Local, v2::Addresses::Unspecified),
            };
            let version = v2::Version::Two | command;
            let protocol = v2::Protocol::Stream;
            v2::Builder::with_addresses(version, protocol, addresses).build()
        }
    }
}

impl Ends {
    /// Both as IPv4, or both as IPv6: a header has one family.
    fn in_one_family(self) -> Ends {
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (source, destination) = (canonical(self.source), canonical(self.destination));
        if source.is_ipv4() == destination.is_ipv4() {
            return Ends { source, destination };
        }
        let mapped = |end: SocketAddr| match end.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        Ends { source: mapped(source), destination: mapped(destination) }
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no PROXY header: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let all = [
            Some(ends("192.0.2.1:1234", "198.51.100.2:443")),
            Some(ends("[2001:db8::1]:65535", "[2001:db8::2]:1")),
            None,
        ];
        for (version, ends) in
            [Version::V1, Version::V2].into_iter().flat_map(|v| all.map(|e| (v, e)))
        {
            let bytes = of(version, ends).expect("a header");
            assert_eq!(length(&bytes).expect("a header"), Some(bytes.len()));
            assert_eq!(parsed(&bytes).expect("a header"), ends);
            for cut in 0..bytes.len() {
                assert_eq!(length(&bytes[..cut]).expect("a header"), None, "{version:?} {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_it_is_seen() {
        for wrong in
            [&b"G"[..], b"PROXY\t", b"\r\n\r\n\0\r\nX", &[b"PROXY ", &[b'x'; 101][..]].concat()]
        {
            assert!(length(wrong).is_err(), "{wrong:?}");
        }
        let long = [v2::PROTOCOL_PREFIX, &[0x21, 0x11, 0xff, 0xff]].concat();
        assert!(length(&long).is_err());
        for lying in [
            &b"PROXY TCP4 192.0.2.1\r\n"[..],
            b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 1\r\n",
            b"PROXY TCP4 ::1 ::1 1 1\r\n",
            // An address of version 2 that is cut.
            &[v2::PROTOCOL_PREFIX, &[0x21, 0x11, 0, 4, 1, 2, 3, 4]].concat(),
        ] {
            assert_eq!(length(lying).expect("complete"), Some(lying.len()));
            assert!(parsed(lying).is_err(), "{lying:?}");
        }
    }

    #[test]
    fn families_are_not_mixed() {
        let mixed = ends("[::ffff:192.0.2.1]:1", "198.51.100.2:2");
        assert_eq!(mixed.in_one_family(), ends("192.0.2.1:1", "198.51.100.2:2"));
        let mixed = ends("192.0.2.1:1", "[2001:db8::2]:2");
        assert_eq!(mixed.in_one_family(), ends("[::ffff:192.0.2.1]:1", "[2001:db8::2]:2"));
    }
}
