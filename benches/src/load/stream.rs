//! The connections of the load generator, as they are or with TLS.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
#[cfg(feature = "http")]
use std::sync::Arc;

#[cfg(feature = "http")]
use super::tls::Tls;
use crate::address::Address;
use crate::sys;
#[cfg(feature = "http")]
use crate::web::certificate;

/// Where connections go, and how.
pub(super) struct Target {
    pub(super) address: Address,
    #[cfg(feature = "http")]
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Target {
    /// With the folder of the certificate, for TLS.
    pub(super) fn new(address: Address, tls: Option<&Path>) -> io::Result<Target> {
        #[cfg(feature = "http")]
        let tls = tls.map(certificate::client).transpose()?;
        #[cfg(not(feature = "http"))]
        if tls.is_some() {
            return Err(io::Error::other("built without the feature `http`: there is no TLS"));
        }
        Ok(Target {
            address,
            #[cfg(feature = "http")]
            tls,
        })
    }

    /// Connects; a full accept queue of a Unix listener says "try again".
    pub(super) fn connect(&self, source: Ipv4Addr) -> io::Result<Stream> {
        for _ in 0..1000 {
            match sys::connect(&self.address, Some(source)) {
                Err(error) if sys::would_block(&error) => std::thread::yield_now(),
                result => return self.stream(result?),
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not accept connections"))
    }

    fn stream(&self, fd: OwnedFd) -> io::Result<Stream> {
        #[cfg(feature = "http")]
        if let Some(tls) = &self.tls {
            return Ok(Stream::Tls(Box::new(Tls::new(fd, tls)?)));
        }
        Ok(Stream::Plain(fd))
    }
}

/// Sends and receives as its socket does: at once or, while the socket does not block, as far as it can be done now.
pub(super) enum Stream {
    Plain(OwnedFd),
    #[cfg(feature = "http")]
    Tls(Box<Tls>),
}

impl Stream {
    /// Receives; 0 is the end. Less than there was room for is all there is.
    #[inline]
    pub(super) fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(fd) => sys::recv(fd.as_fd(), buffer),
            #[cfg(feature = "http")]
            Stream::Tls(tls) => tls.recv(buffer),
        }
    }

    /// Takes bytes to send.
    #[inline]
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(fd) => sys::send(fd.as_fd(), bytes),
            #[cfg(feature = "http")]
            Stream::Tls(tls) => tls.send(bytes),
        }
    }

    /// Whether some of what it took is still here: the next call, with any bytes or none, sends it first.
    #[inline]
    pub(super) fn holds_back(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            #[cfg(feature = "http")]
            Stream::Tls(tls) => tls.holds_back(),
        }
    }

    /// Says that nothing more comes, and closes.
    #[inline]
    pub(super) fn close(self) {
        match self {
            Stream::Plain(fd) => drop(fd),
            #[cfg(feature = "http")]
            Stream::Tls(tls) => tls.close(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Plain(fd) => fd.as_fd(),
            #[cfg(feature = "http")]
            Stream::Tls(tls) => tls.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.recv(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
