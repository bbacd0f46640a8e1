//! The server's side.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{Accepted, AcceptedAlert, Acceptor, ClientHello};

use super::connection::TlsConnection;
use super::handshake::{self, TIMEOUT};
use super::session::Session;
use crate::connection::Connection;

/// So much of what the client says is looked at in one go, in bytes.
const HELLO_BYTES_STEP: usize = 4 << 10;

/// Does handshakes as a server. Clones do the same.
///
/// See the [module](super) for an example.
#[derive(Clone)]
pub struct TlsAcceptor {
    choose: Choose,
    timeout: Option<Duration>,
}

#[derive(Clone)]
enum Choose {
    Always(Arc<ServerConfig>),
    By(Arc<ChooseBy>),
}

type ChooseBy = dyn Fn(&ClientHello<'_>) -> io::Result<Arc<ServerConfig>> + Send + Sync;

impl TlsAcceptor {
    /// One with the same configuration for all. Certificates by name are its
    /// [resolver's](rustls::server::ResolvesServerCertUsingSni) part.
    ///
    /// If it allows early data, what came so is in [`input_mut`](TlsConnection::input_mut) already when the handshake is done, in front of the
    /// rest, so [`more`](TlsConnection::more) does not wait for it; and it may have been sent before by somebody else.
    pub fn new(config: Arc<ServerConfig>) -> TlsAcceptor {
        TlsAcceptor { choose: Choose::Always(config), timeout: Some(TIMEOUT) }
    }

    /// One that chooses the configuration by what the client says first, such as the server's name and the protocols it offers. It is
    /// also where one changes from one configuration to the next, if certificates are renewed.
    ///
    /// If `choose` returns an error, [`accept`](TlsAcceptor::accept) does, and the client is not told why.
    pub fn choosing(
        choose: impl Fn(&ClientHello<'_>) -> io::Result<Arc<ServerConfig>> + Send + Sync + 'static,
    ) -> TlsAcceptor {
        TlsAcceptor { choose: Choose::By(Arc::new(choose)), timeout: Some(TIMEOUT) }
    }

    /// How long a handshake may take; 10 seconds if nothing else is said.
    pub fn handshake_timeout(mut self, timeout: Option<Duration>) -> TlsAcceptor {
        self.timeout = timeout;
        self
    }

    /// Does the handshake on a connection.
    ///
    /// # Errors
    /// As of [`TlsConnection`]; what the choice returns; [`InvalidInput`](io::ErrorKind::InvalidInput) if the configuration is of no use;
    /// [`TimedOut`](io::ErrorKind::TimedOut); [`ConnectionAborted`](io::ErrorKind::ConnectionAborted) if the server shuts down before
    /// the client has said anything.
    ///
    /// # Cancellation
    /// Dropping it drops the connection.
    pub async fn accept(&self, connection: Connection) -> io::Result<TlsConnection> {
        // Boxed: it is larger than all that comes after it, and whoever calls this would hold its room for as long.
        handshake::within(self.timeout, Box::pin(self.accept_in_time(connection))).await
    }

    async fn accept_in_time(&self, mut connection: Connection) -> io::Result<TlsConnection> {
        // What was staged before is a part of how both have come here.
        connection.flush().await?;
        let accepted = hello(&mut connection).await?;
        let tls = self.session(connection, &accepted.client_hello())?;
        // It has a session of its own.
        drop(accepted);
        handshake::finish(tls).await
    }

    fn session(
        &self,
        connection: Connection,
        hello: &ClientHello<'_>,
    ) -> io::Result<TlsConnection> {
        let config = match &self.choose {
            Choose::Always(config) => config.clone(),
            Choose::By(choose) => choose(hello)?,
        };
        let session = Session::server(config)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(TlsConnection::new(connection, session, hello.server_name()))
    }
}

/// Waits for what the client says first, and leaves it in the connection's input: rustls has no other way to tell the name that the
/// client has asked for.
async fn hello(connection: &mut Connection) -> io::Result<Accepted> {
    let mut acceptor = Acceptor::default();
    let mut seen = 0;
    // A server that shuts down does not wait for who has said nothing.
    if !connection.next_request().await? && connection.control().is_draining() {
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server shuts down"));
    }
    loop {
        connection.fill(seen + 1).await?;
        let input = connection.input_mut();
        let bytes = input.peek(input.len().min(seen + HELLO_BYTES_STEP))?;
        seen += acceptor.read_tls(&mut &bytes[seen..])?;
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, alert)) => {
                tell(connection, alert);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// If it cannot be told, there is nobody to tell it to.
fn tell(connection: &mut Connection, mut alert: AcceptedAlert) {
    let _ = alert.write_all(connection.writer_mut().buffer_mut());
    let _ = connection.writer_mut().submit();
}

impl fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAcceptor").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
