//! The client's side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::connection::TlsConnection;
use super::handshake::{self, TIMEOUT};
use super::session::Session;
use crate::connection::Connection;

/// Does handshakes as a client. Clones do the same, and share what sessions can be resumed with.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use duopoll::Dialer;
/// use duopoll::tls::TlsConnector;
/// use rustls::{ClientConfig, RootCertStore};
///
/// # async fn example(roots: RootCertStore) -> Result<(), Box<dyn std::error::Error>> {
/// let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
/// let connector = TlsConnector::new(Arc::new(config));
///
/// let connection = Dialer::new().dial("example.org:443").await?;
/// let mut tls = connector.connect(connection, "example.org".try_into()?).await?;
/// tls.write(b"GET / HTTP/1.0\r\nhost: example.org\r\n\r\n")?;
/// tls.flush().await?;
/// while tls.more().await? {}
/// println!("{} bytes", tls.input_mut().len());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    timeout: Option<Duration>,
}

impl TlsConnector {
    /// One with what the configuration says. That it allows early data changes nothing: none is sent.
    pub fn new(config: Arc<ClientConfig>) -> TlsConnector {
        TlsConnector { config, timeout: Some(TIMEOUT) }
    }

    /// How long a handshake may take; 10 seconds if nothing else is said.
    pub fn handshake_timeout(mut self, timeout: Option<Duration>) -> TlsConnector {
        self.timeout = timeout;
        self
    }

    /// Does the handshake on a connection, with the server of that name: its certificate has to be for it.
    ///
    /// # Errors
    /// As of [`TlsConnection`], for instance [`InvalidData`](io::ErrorKind::InvalidData) if the certificate is not to be trusted;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the configuration is of no use; [`TimedOut`](io::ErrorKind::TimedOut).
    ///
    /// # Cancellation
    /// Dropping it drops the connection.
    pub async fn connect(
        &self,
        connection: Connection,
        name: ServerName<'static>,
    ) -> io::Result<TlsConnection> {
        let session = Session::client(self.config.clone(), name)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut tls = TlsConnection::new(connection, session, None);
        tls.begin()?;
        handshake::within(self.timeout, Box::pin(handshake::finish(tls))).await
    }
}
