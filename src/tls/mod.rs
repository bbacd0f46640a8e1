//! TLS by [`rustls`] over a [`Connection`](crate::Connection), for servers and clients.
//!
//! [`TlsAcceptor`] and [`TlsConnector`] do the handshake, and give a [`TlsConnection`], which is read and written as a
//! [`Connection`](crate::Connection) is: the plain text lies in a [`LinkBuffer`](crate::LinkBuffer), and with the features `tokio`,
//! `futures-io` and `hyper` it has their traits. What there is to say of certificates, protocols, ALPN, client certificates, session
//! resumption and the like is said to rustls, in its [`ServerConfig`](rustls::ServerConfig) and [`ClientConfig`](rustls::ClientConfig).
//!
//! The cryptography is the program's choice: that of its own dependency on rustls, or `ring` or `aws-lc-rs` by this crate's
//! features `rustls-ring` and `rustls-aws-lc-rs`. If a build has both, because something else in it wants the other one, rustls
//! chooses none: `CryptoProvider::install_default` does, or the `builder_with_provider` of a configuration.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use duopoll::tls::TlsAcceptor;
//! use duopoll::{Connection, EventLoop, Listener};
//! use rustls::ServerConfig;
//! use rustls::pki_types::pem::PemObject;
//! use rustls::pki_types::{CertificateDer, PrivateKeyDer};
//!
//! let certificates = CertificateDer::pem_file_iter("server.pem")?.collect::<Result<_, _>>()?;
//! let key = PrivateKeyDer::from_pem_file("server.key")?;
//! let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?;
//!
//! let acceptor = TlsAcceptor::new(Arc::new(config));
//! let server = EventLoop::builder()
//!     .on_connection(async move |connection: Connection| {
//!         let mut tls = acceptor.accept(connection).await?;
//!         while let Ok(line) = tls.until(b'\n', 1000).await {
//!             tls.push(line);
//!             tls.flush().await?;
//!         }
//!         tls.close();
//!         Ok(())
//!     })
//!     .serve(Listener::bind("127.0.0.1:8443")?)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Copies
//! Records are decrypted where they were received, unless they lie in several pieces of memory. rustls copies their plain text
//! once, and it is copied once more into the connection's buffer, or by the traits straight to whom it is read by. What is written
//! is encrypted from where it lies, small pieces together in one record; rustls copies it once, and the records are copied once more
//! into the connection's output.
//!
//! # Time
//! A handshake costs a signature, which takes from a tenth of a millisecond to a millisecond on the poller's thread, by the kind of
//! key. It is given 10 seconds unless something else is said. The timeouts of the [`Connection`](crate::Connection) count as
//! there, with one difference: the read timeout is for each record and not for a message of several.

mod accept;
mod connect;
mod connection;
mod handshake;
mod session;

pub use accept::TlsAcceptor;
pub use connect::TlsConnector;
pub use connection::TlsConnection;
pub use rustls;
