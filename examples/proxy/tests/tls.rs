//! TLS that ends at the proxy.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, mpsc};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use support::{ENGINES, Family, PATIENCE, Proxy, Stream, echo, path, upstream};

/// A certificate for localhost, and where it is with its key.
fn certificate() -> (CertificateDer<'static>, String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (certificate, key) = (path("certificate.pem"), path("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let text = |path: std::path::PathBuf| path.to_str().expect("text").to_owned();
    (made.cert.der().clone(), text(certificate), text(key))
}

fn client(of: &CertificateDer<'static>, stream: Stream) -> StreamOwned<ClientConnection, Stream> {
    let mut roots = RootCertStore::empty();
    roots.add(of.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    StreamOwned::new(connection, stream)
}

#[test]
fn tls_ends_here() {
    let (der, certificate, key) = certificate();
    let serves = upstream(Family::V4, echo);
    for (engine, header) in ENGINES.iter().flat_map(|engine| [(engine, false), (engine, true)]) {
        let flag = if header { "--accept-proxy" } else { "" };
        let proxy = Proxy::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {serves} --tls-certificate {certificate} \
             --tls-key {key} {flag}"
        ));
        let mut stream = proxy.connect();
        if header {
            // Before the handshake, and in the clear.
            stream.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").expect("sent");
        }
        let mut client = client(&der, stream);
        let sent: Vec<u8> = (0..1 << 20).map(|at| (at % 251) as u8).collect();
        for piece in sent.chunks(100_000) {
            client.write_all(piece).expect("sent");
            let mut back = vec![0; piece.len()];
            client.read_exact(&mut back).expect("received");
            assert!(back == piece, "{engine}: other bytes came back");
        }
        // The end comes over in both directions, and is one of TLS.
        client.conn.send_close_notify();
        client.flush().expect("sent");
        assert_eq!(client.read(&mut [0]).expect("an end"), 0);
    }
}

#[test]
fn a_cut_is_no_end() {
    let (der, certificate, key) = certificate();
    for engine in ENGINES {
        for (says_goodbye, expected) in [(true, Ok(())), (false, Err(ErrorKind::ConnectionReset))] {
            let (tell, told) = mpsc::channel();
            let reads = upstream(Family::V4, move |mut stream| {
                stream.write_all(b"x").expect("sent");
                let mut all = Vec::new();
                let end = stream.read_to_end(&mut all).map_err(|error| error.kind());
                let _ = tell.send((all.len(), end.map(drop)));
            });
            let proxy = Proxy::start(&format!(
                "--engine {engine} --listen 127.0.0.1:0 --upstream {reads} --tls-certificate {certificate} \
                 --tls-key {key} --health-interval 0"
            ));
            let mut client = client(&der, proxy.connect());
            client.read_exact(&mut [0]).expect("received");
            client.write_all(&[7; 500_000]).expect("sent");
            client.flush().expect("sent");
            if says_goodbye {
                client.conn.send_close_notify();
                client.flush().expect("sent");
            }
            drop(client);
            let end = told.recv_timeout(PATIENCE).expect("an end");
            assert_eq!(end, (500_000, expected), "{engine}");
        }
    }
}

#[test]
fn each_listener_has_its_own_clients() {
    let (der, certificate, key) = certificate();
    let serves = upstream(Family::V4, echo);
    let file = path("config.toml");
    let text = format!(
        "[[listen]]\naddress = '127.0.0.1:0'\ntls = {{ certificate = '{certificate}', key = '{key}' }}\n\
         [[listen]]\naddress = '127.0.0.1:0'\n[[upstream]]\naddress = '{serves}'\n"
    );
    std::fs::write(&file, text).expect("written");
    let proxy = Proxy::start(&format!("--config {} --begin-timeout 0.3", file.display()));
    let [secret, plain] = &proxy.addresses[..] else { panic!("two listeners") };
    assert_eq!(Stream::connect(plain).round_trip(b"x").expect("served"), b"x");
    let mut wrong = Stream::connect(secret);
    wrong.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _ = wrong.read_to_end(&mut answer);
    assert!(answer.len() <= 7, "{}", answer.escape_ascii());
    let mut right = client(&der, Stream::connect(secret));
    right.write_all(b"x").expect("sent");
    right.read_exact(&mut [0]).expect("served");
}

#[test]
fn who_speaks_no_tls_is_refused() {
    let (_, certificate, key) = certificate();
    let serves = upstream(Family::V4, echo);
    let proxy = Proxy::start(&format!(
        "--listen 127.0.0.1:0 --upstream {serves} --tls-certificate {certificate} --tls-key {key} \
             --begin-timeout 0.3"
    ));
    let mut plain = proxy.connect();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    // An alert, at most.
    assert!(answer.len() <= 7, "{}", answer.escape_ascii());
    let mut silent = proxy.connect();
    assert!(silent.is_over());
}
