//! TLS for an example server: a certificate for this machine, signed by itself and made at start.

use std::io;
use std::path::Path;
use std::sync::Arc;

use duopoll::tls::TlsAcceptor;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

/// The names that it is for.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

#[allow(dead_code, reason = "not every example has its TLS by itself")]
/// Offers these protocols, the first one first. The certificate goes to `file`, as PEM, for clients that want to know whom they
/// trust.
pub(crate) fn acceptor(protocols: &[&str], file: Option<&Path>) -> io::Result<TlsAcceptor> {
    Ok(TlsAcceptor::new(Arc::new(config(protocols, file)?)))
}

pub(crate) fn config(protocols: &[&str], file: Option<&Path>) -> io::Result<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(NAMES.map(str::to_owned));
    let made = made.map_err(io::Error::other)?;
    if let Some(file) = file {
        std::fs::write(file, made.cert.pem())?;
    }
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    // Named, since there may be another one in the build.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(io::Error::other)?.with_no_client_auth();
    let config = config.with_single_cert(vec![made.cert.der().clone()], key.into());
    let mut config = config.map_err(io::Error::other)?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(config)
}
