//! A client of HTTP/1.1 that asks once: for a first look at the answer, and for connections that stay silent.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::certificate;
use super::shape::Ask;

/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// What makes connections to a server.
pub struct Client {
    addr: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
}

/// A connection.
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Client {
    /// With the folder of the certificate, for TLS.
    pub fn new(addr: SocketAddr, tls: Option<&Path>) -> io::Result<Client> {
        Ok(Client { addr, tls: tls.map(certificate::client).transpose()? })
    }

    /// Connects.
    pub fn connect(&self) -> io::Result<Stream> {
        let socket = TcpStream::connect(self.addr)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(socket)) };
        let name = ServerName::try_from(certificate::NAME).map_err(io::Error::other)?;
        let session = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
        Ok(Stream::Tls(Box::new(StreamOwned::new(session, socket))))
    }
}

impl Stream {
    /// Asks, compares the answer with the right one, and returns the length of all of it, the head included.
    pub fn ask(&mut self, ask: Ask, right: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => exchange(stream, ask, right),
            Stream::Tls(stream) => exchange(stream, ask, right),
        }
    }

    /// Says that nothing more comes, and waits until the server has closed too.
    pub fn close(self) -> io::Result<()> {
        let mut socket = match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(mut stream) => {
                stream.conn.send_close_notify();
                stream.conn.write_tls(&mut stream.sock)?;
                stream.sock
            }
        };
        socket.shutdown(std::net::Shutdown::Write)?;
        let mut rest = [0; 4096];
        loop {
            match socket.read(&mut rest) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn exchange(stream: &mut (impl Read + Write), ask: Ask, right: &[u8]) -> io::Result<usize> {
    let posted = ask.posts();
    let method = if posted.is_some() { "POST" } else { "GET" };
    let mut request = format!("{method} {} HTTP/1.1\r\nhost: localhost\r\n", ask.path());
    if let Some(posted) = &posted {
        request += &format!("content-length: {}\r\n", posted.len());
    }
    let mut request = (request + "\r\n").into_bytes();
    request.extend(posted.unwrap_or_default());
    stream.write_all(&request)?;
    stream.flush()?;

    let mut received = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut more = |received: &mut Vec<u8>| match stream.read(&mut buffer)? {
        0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "the server has closed")),
        bytes => {
            received.extend_from_slice(&buffer[..bytes]);
            Ok(())
        }
    };
    let head_bytes = loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if received.len() > HEAD_BYTES_MAX {
            return Err(wrong("the head of the answer does not end".into()));
        }
        more(&mut received)?;
    };
    let head = String::from_utf8_lossy(&received[..head_bytes]).into_owned();
    let all = head_bytes + body_bytes(&head)?;
    while received.len() < all {
        more(&mut received)?;
    }
    if received.len() > all || received[head_bytes..] != *right {
        return Err(wrong(format!("the answer is not the right one, its head is {head:?}")));
    }
    Ok(all)
}

/// The length of the body, if all is well.
fn body_bytes(head: &str) -> io::Result<usize> {
    let mut lines = head.lines();
    if lines.next().and_then(|line| line.split(' ').nth(1)) != Some("200") {
        return Err(wrong(format!("the answer is not 200, its head is {head:?}")));
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| wrong(format!("the answer has no length, its head is {head:?}")))
}

fn wrong(text: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}
