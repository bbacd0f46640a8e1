//! Errors that say what was done to which address, and what can be done about it.

use std::error::Error;
use std::fmt;
use std::io;

use crate::address::Address;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Listening,
    Dialing,
}

/// An error of the kernel, and what it is about. The error itself is its source.
#[derive(Debug)]
struct Named {
    text: String,
    error: io::Error,
}

/// The error with the address, and the remedy where there is one. Its kind stays.
pub(crate) fn named(error: io::Error, doing: Doing, address: &Address) -> io::Error {
    let verb = match doing {
        Doing::Listening => "cannot listen at",
        Doing::Dialing => "cannot connect to",
    };
    let remedy = match doing {
        Doing::Listening => remedy(&error, address),
        Doing::Dialing => "",
    };
    let text = format!("{verb} {address}: {error}{remedy}");
    io::Error::new(error.kind(), Named { text, error })
}

/// What helps whoever cannot listen.
fn remedy(error: &io::Error, address: &Address) -> &'static str {
    match (error.raw_os_error(), address) {
        (Some(libc::EADDRINUSE), Address::Unix(_)) => {
            "; if nobody listens there any more, remove the file, or see `take_over_stale`"
        }
        (Some(libc::EADDRINUSE), Address::Tcp(_)) => "; somebody else listens there",
        (Some(libc::EADDRNOTAVAIL), Address::Tcp(_)) => "; this machine does not have that address",
        (Some(libc::EACCES), Address::Tcp(tcp)) if tcp.port() < 1024 => {
            "; a port below 1024 needs CAP_NET_BIND_SERVICE, or a lower net.ipv4.ip_unprivileged_port_start"
        }
        (Some(libc::ENOENT), Address::Unix(_)) => "; there is no such directory",
        _ => "",
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Named {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}
