//! Certificates and configurations for TLS, made anew in each process.

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};
use std::thread;

use duopoll::tls::{TlsAcceptor, TlsConnection};
use duopoll::{Limits, Pollers};
use pollster::block_on;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, ServerConfig, StreamOwned,
    SupportedProtocolVersion, WantsVerifier,
};

use crate::support::{Peer, Setup, connected};

/// Named, since there may be another one in the build.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a server's configuration begins with.
pub fn server_builder() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    let builder = ServerConfig::builder_with_provider(provider());
    builder.with_safe_default_protocol_versions().expect("versions")
}

/// What a client's configuration begins with.
pub fn client_builder(
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsVerifier> {
    let builder = ClientConfig::builder_with_provider(provider());
    builder.with_protocol_versions(versions).expect("versions")
}

/// Who signs the others.
static AUTHORITY: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
});

/// The name that servers have here, unless a test gives them another.
pub const NAME: &str = "server.test";

pub fn server_name() -> ServerName<'static> {
    NAME.try_into().expect("a name")
}

/// A certificate for some names, and its key.
pub fn identity(
    names: impl IntoIterator<Item = String>,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().expect("a key");
    let names: Vec<_> = names.into_iter().collect();
    let params = CertificateParams::new(names).expect("names");
    let certificate = params.signed_by(&key, &AUTHORITY).expect("signed");
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    (vec![certificate.der().clone()], key.into())
}

/// The same, for a resolver.
pub fn certified_key(name: &str) -> CertifiedKey {
    let (certificates, key) = identity([name.to_owned()]);
    let key = rustls::crypto::ring::sign::any_supported_type(&key).expect("a key");
    CertifiedKey::new(certificates, key)
}

pub fn roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(AUTHORITY.der().clone()).expect("a certificate");
    Arc::new(roots)
}

/// A server's configuration, for [`NAME`].
pub fn server_config() -> ServerConfig {
    let (certificates, key) = identity([NAME.to_owned()]);
    let config = server_builder().with_no_client_auth();
    config.with_single_cert(certificates, key).expect("a configuration")
}

/// The same, for clients that show a certificate.
pub fn strict_server_config() -> ServerConfig {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(), provider())
        .build()
        .expect("a verifier");
    let (certificates, key) = identity([NAME.to_owned()]);
    let config = server_builder().with_client_cert_verifier(verifier);
    config.with_single_cert(certificates, key).expect("a configuration")
}

/// The configuration of clients that trust it.
pub fn client_config() -> ClientConfig {
    client_config_of(rustls::ALL_VERSIONS)
}

pub fn client_config_of(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(), provider())
        .build()
        .expect("a verifier");
    let config = client_builder(versions);
    config.with_webpki_verifier(verifier).with_no_client_auth()
}

/// One that shows a certificate.
pub fn known_client_config() -> ClientConfig {
    let (certificates, key) = identity(["client.test".to_owned()]);
    let config = client_builder(rustls::ALL_VERSIONS).with_root_certificates(roots());
    config.with_client_auth_cert(certificates, key).expect("a configuration")
}

/// A peer of std's sockets and rustls' own stream.
pub type TlsPeer = StreamOwned<ClientConnection, Peer>;

pub fn client(peer: Peer, config: impl Into<Arc<ClientConfig>>) -> TlsPeer {
    let client = ClientConnection::new(config.into(), server_name()).expect("a configuration");
    StreamOwned::new(client, peer)
}

/// One of ours, on a poller of its own, and a client of it, after their handshake.
pub fn pair(setup: Setup, limits: Limits) -> (Pollers, TlsConnection, TlsPeer) {
    let (pollers, connection, peer) = connected(setup, limits);
    let client = thread::spawn(move || {
        let mut client = client(peer, client_config());
        client.conn.complete_io(&mut client.sock).expect("a handshake");
        client
    });
    let acceptor = TlsAcceptor::new(Arc::new(server_config()));
    let tls = block_on(acceptor.accept(connection)).expect("a handshake");
    (pollers, tls, client.join().expect("no panic"))
}

/// Sends a message and reads as many bytes back.
pub fn round_trip(peer: &mut (impl Read + Write), message: &[u8]) -> Vec<u8> {
    peer.write_all(message).expect("sent");
    peer.flush().expect("sent");
    let mut reply = vec![0; message.len()];
    peer.read_exact(&mut reply).expect("a reply");
    reply
}
