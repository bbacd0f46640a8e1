//! TLS of the load generator: a session of rustls over a socket that may block or not.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::sys;
use crate::web::certificate;

/// A session, whose handshake comes with what is sent and received first.
pub(super) struct Tls {
    socket: TcpStream,
    session: ClientConnection,
}

/// A socket, and whether its last read has taken all there was.
struct Source<'a> {
    socket: &'a TcpStream,
    is_drained: bool,
}

impl Tls {
    pub(super) fn new(fd: OwnedFd, config: &Arc<ClientConfig>) -> io::Result<Tls> {
        let name = ServerName::try_from(certificate::NAME).map_err(io::Error::other)?;
        let session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        Ok(Tls { socket: fd.into(), session })
    }

    pub(super) fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut source = Source { socket: &self.socket, is_drained: false };
        let mut filled = 0;
        loop {
            match self.session.reader().read(&mut buffer[filled..]) {
                Ok(0) => return Ok(filled),
                Ok(bytes) => filled += bytes,
                Err(error) if !sys::would_block(&error) => return Err(error),
                Err(_) if source.is_drained && filled > 0 => return Ok(filled),
                Err(_) => {
                    // What comes next in a handshake may be this side's.
                    send_held(&mut self.session, &self.socket)?;
                    match self.session.read_tls(&mut source) {
                        Err(error) if sys::would_block(&error) && filled > 0 => {
                            return Ok(filled);
                        }
                        result => result?,
                    };
                    let wrong = |error| io::Error::new(io::ErrorKind::InvalidData, error);
                    self.session.process_new_packets().map_err(wrong)?;
                }
            }
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send_held(&mut self.session, &self.socket)?;
        if self.holds_back() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = self.session.writer().write(bytes)?;
        send_held(&mut self.session, &self.socket)?;
        Ok(taken)
    }

    pub(super) fn holds_back(&self) -> bool {
        self.session.wants_write()
    }

    pub(super) fn close(mut self) {
        self.session.send_close_notify();
        // The server may be gone.
        let _ = send_held(&mut self.session, &self.socket);
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends what the session holds, as far as the socket takes it.
#[inline]
fn send_held(session: &mut ClientConnection, mut socket: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        match session.write_tls(&mut socket) {
            Err(error) if sys::would_block(&error) => break,
            result => result?,
        };
    }
    Ok(())
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.socket.read(buffer)?;
        self.is_drained = bytes < buffer.len();
        Ok(bytes)
    }
}
