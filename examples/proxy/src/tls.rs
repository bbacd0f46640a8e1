//! TLS that ends here, with a certificate out of files.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use duopoll::tls::TlsAcceptor;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Tls;

pub(crate) fn acceptor(tls: &Tls, timeout: Duration) -> io::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(&tls.certificate);
    let chain = chain.and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| of_file(&tls.certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| of_file(&tls.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(io::Error::other)?.with_no_client_auth();
    let config = config.with_single_cert(chain, key).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: {error}", tls.certificate.display()),
        )
    })?;
    Ok(TlsAcceptor::new(Arc::new(config)).handshake_timeout(Some(timeout)))
}

fn of_file(path: &Path, error: &pem::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}
