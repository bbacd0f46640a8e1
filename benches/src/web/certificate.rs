//! A certificate of this run, in files that every server reads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite::TLS13_AES_128_GCM_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name in it.
pub const NAME: &str = "localhost";

/// The file with the certificate.
pub fn certificate(folder: &Path) -> PathBuf {
    folder.join("certificate.pem")
}

/// The file with its key.
pub fn key(folder: &Path) -> PathBuf {
    folder.join("key.pem")
}

/// Makes one, of P-256, and its key, and for HAProxy a file with both.
pub fn make(folder: &Path) -> io::Result<()> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(io::Error::other)?;
    let (cert, key_pem) = (made.cert.pem(), made.signing_key.serialize_pem());
    std::fs::write(certificate(folder), &cert)?;
    std::fs::write(key(folder), &key_pem)?;
    std::fs::write(folder.join("both.pem"), cert + &key_pem)
}

/// What rustls is told on every runtime: TLS 1.3, either version of HTTP.
pub fn server(folder: &Path) -> io::Result<Arc<ServerConfig>> {
    let key = PrivateKeyDer::from_pem_file(key(folder)).map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![read(folder)?], key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts it.
pub fn client(folder: &Path) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(read(folder)?).map_err(io::Error::other)?;
    // Each server would choose another cipher.
    let provider = CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
        ..ring::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every handshake is a full one.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn read(folder: &Path) -> io::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(certificate(folder)).map_err(io::Error::other)
}
