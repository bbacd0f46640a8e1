//! The example of HTTP/3 when it is told to end.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use common::quic::{HTTP3, client_config_for};
use common::site::Site;
use duopoll::quinn::Endpoints;
use duopoll::udp::UdpSocket;
use duopoll::{Engine, task, time};
use h3::client::SendRequest;
use h3_quinn::OpenStreams;
use hyper::Request;
use pollster::block_on;
use quinn::{Connection, ConnectionError, EndpointConfig, TransportConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::{Family, PATIENCE, Setup};

mod epoll {
    #[test]
    fn a_response_under_way_is_whole() {
        super::a_response_under_way_is_whole("epoll");
    }

    #[test]
    fn who_waits_for_nothing_is_told_soon() {
        super::who_waits_for_nothing_is_told_soon("epoll");
    }
}

mod uring {
    #[test]
    fn a_response_under_way_is_whole() {
        super::a_response_under_way_is_whole("uring");
    }

    #[test]
    fn who_waits_for_nothing_is_told_soon() {
        super::who_waits_for_nothing_is_told_soon("uring");
    }
}

/// A client that is sent little before it has read.
struct Client {
    quic: Connection,
    requests: SendRequest<OpenStreams, Bytes>,
}

/// Runs on a poller, with a client of the site.
fn run<F>(engine: &str, test: impl FnOnce(Site, Client) -> F + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let site = Site::start("h3", engine, true);
    let setup = Setup { engine: Engine::Auto, family: Family::V4 };
    let pollers = setup.pollers(1);
    let clients = Endpoints::bind(
        &pollers,
        UdpSocket::options(),
        setup.address(),
        EndpointConfig::default(),
        None,
    );
    let endpoint = clients.expect("an endpoint").each()[0].clone();
    let run = pollers.spawn(move || async move {
        let trusted = CertificateDer::from_pem_file(site.certificate().expect("it has one"));
        let mut config = client_config_for(HTTP3, trusted.expect("a certificate"));
        let mut transport = TransportConfig::default();
        transport.stream_receive_window((16u32 << 10).into());
        config.transport_config(Arc::new(transport));
        let connecting = endpoint.connect_with(config, site.address(), "localhost");
        let quic = connecting.expect("a configuration").await.expect("connected");
        let made = h3::client::new(h3_quinn::Connection::new(quic.clone())).await;
        let (mut driver, requests) = made.expect("HTTP/3");
        drop(task::spawn_local(async move { poll_fn(|cx| driver.poll_close(cx)).await }));
        time::timeout(PATIENCE, test(site, Client { quic, requests })).await.expect("in time");
    });
    block_on(run).expect("no panic");
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("https://localhost{path}")).body(()).expect("a request")
}

/// `H3_NO_ERROR`.
fn is_no_error(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == 0x100u32.into())
}

fn a_response_under_way_is_whole(engine: &str) {
    run(engine, |site, mut client| async move {
        let mut response = client.requests.send_request(get("/count/50000")).await.expect("sent");
        response.finish().await.expect("sent");
        response.recv_response().await.expect("a head");
        let mut seen = Vec::new();
        let mut pieces = 0;
        while let Some(mut piece) = response.recv_data().await.expect("all of it") {
            seen.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
            pieces += 1;
            if pieces == 2 {
                site.process.terminate();
                // It may be too late for this one, which must not cut the other short.
                if let Ok(mut late) = client.requests.send_request(get("/")).await {
                    let _ = late.finish().await;
                    drop(task::spawn_local(async move { drop(late.recv_response().await) }));
                }
            }
            // The server has handed over all of it long before.
            time::sleep(Duration::from_millis(10)).await;
        }
        let expected: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(seen.len(), expected.len());
        assert!(seen == expected.as_bytes());
        let error = client.quic.closed().await;
        assert!(is_no_error(&error), "{error:?}");
        site.process.end();
    });
}

fn who_waits_for_nothing_is_told_soon(engine: &str) {
    run(engine, |site, mut client| async move {
        let mut response = client.requests.send_request(get("/")).await.expect("sent");
        response.finish().await.expect("sent");
        response.recv_response().await.expect("a head");
        while response.recv_data().await.expect("all of it").is_some() {}
        // Its grace is longer than any test.
        site.process.terminate();
        let error = client.quic.closed().await;
        assert!(is_no_error(&error), "{error:?}");
        site.process.end();
    });
}
