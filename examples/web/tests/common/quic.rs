//! QUIC with a certificate for localhost: configurations, a service that echoes streams, and who checks it.

use std::sync::Arc;

use duopoll::task;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Incoming, ServerConfig};
use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ALL_VERSIONS, RootCertStore};

use super::tls::{client_builder, server_builder};

/// By which peers know that they mean the same.
const PROTOCOL: &[u8] = b"echo";
/// The same for HTTP/3.
pub const HTTP3: &[u8] = b"h3";

pub fn certificate() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".into()]).expect("a certificate")
}

pub fn server_config(identity: &CertifiedKey<KeyPair>) -> ServerConfig {
    let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
    let config = server_builder().with_no_client_auth();
    let config = config.with_single_cert(vec![identity.cert.der().clone()], key.into());
    let mut config = config.expect("a configuration");
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let config = QuicServerConfig::try_from(config).expect("a configuration");
    ServerConfig::with_crypto(Arc::new(config))
}

/// The configuration of clients that trust a certificate.
pub fn client_config(certificate: CertificateDer<'static>) -> ClientConfig {
    client_config_for(PROTOCOL, certificate)
}

pub fn client_config_for(protocol: &[u8], certificate: CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let config = client_builder(ALL_VERSIONS).with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let config = QuicClientConfig::try_from(config).expect("a configuration");
    ClientConfig::new(Arc::new(config))
}

/// Sends back what comes on each stream.
pub async fn echo(incoming: Incoming) {
    let Ok(connection) = incoming.await else { return };
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        task::spawn_local(async move {
            while let Ok(Some(chunk)) = receive.read_chunk(1 << 16, true).await {
                if send.write_chunk(chunk.bytes).await.is_err() {
                    return;
                }
            }
            let _ = send.finish();
        });
    }
}

/// Sends, and reads what comes back to the end.
pub async fn round_trip(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let sent = async {
        send.write_all(bytes).await.expect("sent");
        send.finish().expect("open");
    };
    let (_, received) = futures::join!(sent, receive.read_to_end(usize::MAX));
    received.expect("all of it")
}

pub fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251 + seed) as u8).collect()
}
