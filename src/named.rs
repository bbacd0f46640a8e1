//! Errors that say what was done to which address, and what can be done about it.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::address::Address;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Listening,
    /// Of a socket for datagrams, at which nobody listens.
    Binding,
    Dialing,
}

/// An error of the kernel, and what it is about. The error itself is its source.
#[derive(Debug)]
struct Named {
    text: String,
    error: io::Error,
}

/// The error with the address, unless it has one, and the remedy where there is one. Its kind stays.
pub(crate) fn named(error: io::Error, doing: Doing, address: &(impl Where + ?Sized)) -> io::Error {
    if error.get_ref().is_some_and(|source| source.is::<Named>()) {
        return error;
    }
    let verb = match doing {
        Doing::Listening => "cannot listen at",
        Doing::Binding => "cannot bind to",
        Doing::Dialing => "cannot connect to",
    };
    let remedy = match doing {
        Doing::Listening | Doing::Binding => {
            address.address().map_or("", |address| remedy(&error, address, doing))
        }
        Doing::Dialing => "",
    };
    let text = format!("{verb} {address}: {error}{remedy}");
    io::Error::new(error.kind(), Named { text, error })
}

/// What an error is about.
pub(crate) trait Where: fmt::Display {
    /// If it is known.
    fn address(&self) -> Option<&Address>;
}

impl Where for Address {
    fn address(&self) -> Option<&Address> {
        Some(self)
    }
}

/// A name that stands for addresses.
impl Where for str {
    fn address(&self) -> Option<&Address> {
        None
    }
}

/// What helps whoever cannot listen, or bind.
fn remedy(error: &io::Error, address: &Address, doing: Doing) -> &'static str {
    match (error.raw_os_error(), address) {
        (Some(libc::EADDRINUSE), Address::Unix(path)) => in_use(path, doing),
        (Some(libc::EADDRINUSE), Address::Tcp(_)) if doing == Doing::Binding => {
            "; somebody else is there"
        }
        (Some(libc::EADDRINUSE), Address::Tcp(_)) => {
            "; somebody else listens there, or has until a moment ago: the kernel may take some milliseconds to end what was on io_uring"
        }
        (Some(libc::EADDRNOTAVAIL), Address::Tcp(_)) => "; this machine does not have that address",
        (Some(libc::EACCES), Address::Tcp(tcp)) if tcp.port() < 1024 => {
            "; a port below 1024 needs CAP_NET_BIND_SERVICE, or a lower net.ipv4.ip_unprivileged_port_start"
        }
        (Some(libc::ENOENT), Address::Unix(_)) => "; there is no such directory",
        _ => "",
    }
}

/// Who is at the path of a Unix socket.
fn in_use(path: &Path, doing: Doing) -> &'static str {
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => "; there is a file that is no socket",
        _ if doing == Doing::Binding => {
            "; if nobody is there any more, as a refused connect tells, remove the file"
        }
        _ => {
            "; if nobody listens there any more, as a refused connection tells, remove the file or see `take_over_stale`"
        }
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
