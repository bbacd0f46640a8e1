//! QUIC and HTTP/3 with another implementation, quic-go: its clients with our servers, and its server with a client here.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::quic::{bytes, certificate, client_config, echo, round_trip, server_config};
use common::site::{Scratch, Site, client, said};
use duopoll::quinn::Endpoints;
use duopoll::time;
use duopoll::udp::UdpSocket;
use pollster::block_on;
use quinn::{EndpointConfig, ServerConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::{PATIENCE, Setup};

on_every_setup!(
    internet:
    its_client_reads_and_moves,
    its_server_answers,
);

mod http3 {
    #[test]
    fn a_browser_finds_the_pages_on_epoll() {
        super::a_browser_finds_the_pages("epoll");
    }

    #[test]
    fn a_browser_finds_the_pages_on_uring() {
        super::a_browser_finds_the_pages("uring");
    }
}

fn a_browser_finds_the_pages(engine: &str) {
    let site = Site::start("h3", engine, true);
    let certificate = site.certificate().expect("it has one");
    let at = format!("localhost:{}", site.address().port());
    said(client("quicgo/quicgo").args(["browse", &at]).arg(certificate));
}

/// Endpoints on so many pollers.
fn endpoints(setup: Setup, pollers: usize, server: Option<ServerConfig>) -> Endpoints {
    let (pollers, options) = (setup.pollers(pollers), UdpSocket::options());
    let bound =
        Endpoints::bind(&pollers, options, setup.address(), EndpointConfig::default(), server);
    bound.expect("endpoints")
}

fn its_client_reads_and_moves(setup: Setup) {
    let (identity, file) = (certificate(), Scratch::new("quic-go"));
    fs::write(&file.0, identity.cert.pem()).expect("written");
    let endpoints = endpoints(setup, 3, Some(server_config(&identity)));
    endpoints.serve(echo);
    let at = endpoints.local_addr().to_string();
    // Often enough that each of the endpoints is met.
    for _ in 0..8 {
        said(client("quicgo/quicgo").args(["echo", &at]).arg(&file.0));
    }
    assert_eq!(endpoints.forwarded_datagrams(), 0, "the kernel has delivered them");
}

fn its_server_answers(setup: Setup) {
    let file = Scratch::new("quic-go-server");
    let mut server = client("quicgo/quicgo");
    server.args(["serve", &setup.address()]).arg(&file.0);
    server.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().expect("ci/clients.sh has installed it");
    let mut at = String::new();
    let mut says = BufReader::new(server.stdout.take().expect("piped"));
    says.read_line(&mut at).expect("a line");
    let at = at.trim().parse().expect("an address");

    let trusted = CertificateDer::from_pem_file(&file.0).expect("a certificate");
    let endpoints = endpoints(setup, 1, None);
    let client = &endpoints.each()[0];
    let asks = async {
        let connecting = client.connect_with(client_config(trusted), at, "localhost");
        let connection = connecting.expect("a configuration").await.expect("connected");
        for (number, len) in [0, 1, 1_000, 100_000, 8 << 20].into_iter().enumerate() {
            let sent = bytes(len, number);
            assert!(round_trip(&connection, &sent).await == sent);
        }
        client.close(0u8.into(), b"");
        client.wait_idle().await;
    };
    block_on(time::timeout(PATIENCE, asks)).expect("in time");
    drop(server.stdin.take());
    assert!(server.wait().expect("it ends").success());
}
