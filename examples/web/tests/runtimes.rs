//! Servers of axum and tonic that run on tokio's runtime, with listeners and connections of ours.

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::thread;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::routing::{get, post};
use duopoll::Address;
use support::{Family, PATIENCE, Peer, Setup, connected};
use tokio::sync::oneshot;
use tonic::transport::server::Connected;

on_every_setup!(
    axum_serves_a_listener_of_ours,
    axum_goes_on_after_who_was_gone_at_once,
    tonic_is_told_the_addresses,
    tonic_serves_connections_of_ours,
);

/// Runs a server on tokio's runtime while `client` is busy, and waits for its end.
fn serve<F>(server: F, client: impl FnOnce())
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("one");
    let serving = thread::spawn(move || runtime.block_on(server));
    client();
    serving.join().expect("no panic");
}

fn axum_serves_a_listener_of_ours(setup: Setup) {
    let router = Router::new()
        .route("/peer", get(async |ConnectInfo(peer): ConnectInfo<Address>| peer.to_string()))
        .route("/echo", post(async |request: Request| request.into_body()));
    let listener = setup.listener().pollers(setup.pollers(1));
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = async move {
        let router = router.into_make_service_with_connect_info::<Address>();
        let server = axum::serve(listener, router);
        let stopped = async { drop(stopped.await) };
        server.with_graceful_shutdown(stopped).await.expect("served");
    };
    serve(server, move || {
        let mut peer = Peer::connect(&address);
        let reply = ask(&mut peer, b"GET /peer HTTP/1.1\r\nhost: x\r\n\r\n");
        if setup.family != Family::Unix {
            assert!(reply.ends_with(&peer_name(&peer)), "{reply}");
        }
        let body = "x".repeat(50_000);
        let request =
            format!("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", body.len());
        peer.write_all(request.as_bytes()).expect("sent");
        peer.write_all(b"connection: close\r\n\r\n").expect("sent");
        peer.write_all(body.as_bytes()).expect("sent");
        let reply = String::from_utf8(peer.read_rest().expect("a reply")).expect("text");
        assert!(reply.matches('x').count() >= body.len(), "{} bytes", reply.len());
        drop(stop);
    });
}

fn peer_name(peer: &Peer) -> String {
    match peer {
        Peer::Tcp(stream) => stream.local_addr().expect("bound").to_string(),
        Peer::Unix(_) => String::new(),
    }
}

/// One request, and the reply as far as it comes with its head.
fn ask(peer: &mut Peer, request: &[u8]) -> String {
    peer.write_all(request).expect("sent");
    let mut reply = Vec::new();
    loop {
        let mut byte = [0];
        peer.read_exact(&mut byte).expect("a reply");
        reply.push(byte[0]);
        let text = String::from_utf8_lossy(&reply).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.expect("a length").parse().expect("a number") {
            return text;
        }
    }
}

fn axum_goes_on_after_who_was_gone_at_once(setup: Setup) {
    let router = Router::new().route("/", get(async || "still here"));
    let listener = setup.listener().pollers(setup.pollers(1));
    let address = listener.local_addr().expect("bound");
    (0..20).for_each(|_| Peer::connect(&address).reset());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = async move {
        let stopped = async { drop(stopped.await) };
        axum::serve(listener, router).with_graceful_shutdown(stopped).await.expect("served");
    };
    serve(server, move || {
        let mut peer = Peer::connect(&address);
        let reply = ask(&mut peer, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(reply.ends_with("still here"), "{reply}");
        drop((stop, peer));
    });
}

fn tonic_is_told_the_addresses(setup: Setup) {
    let (_pollers, connection, peer) = connected(setup, duopoll::Limits::default());
    let told = connection.connect_info();
    let Peer::Tcp(peer) = &peer else {
        assert!(told.remote_addr().is_none() && told.local_addr().is_none());
        return;
    };
    assert_eq!(told.remote_addr(), peer.local_addr().ok());
    assert_eq!(told.local_addr(), peer.peer_addr().ok());
}

/// A service that answers every call with nothing but its status.
fn tonic_serves_connections_of_ours(setup: Setup) {
    let listener = setup.listener().pollers(setup.pollers(1));
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = async move {
        let stopped = async { drop(stopped.await) };
        tonic::transport::Server::builder()
            .add_routes(tonic::service::Routes::default())
            .serve_with_incoming_shutdown(listener.into_incoming(), stopped)
            .await
            .expect("served");
    };
    serve(server, move || {
        let mut peer = Peer::connect(&address);
        // The preface, and settings: they are answered with settings, and acknowledged.
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
        peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).expect("sent");
        peer.set_timeout(PATIENCE);
        let (mut header, mut kinds) = ([0; 9], Vec::new());
        while kinds.iter().filter(|kind| **kind == 4).count() < 2 {
            peer.read_exact(&mut header).expect("a frame");
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            peer.read_exact(&mut vec![0; length]).expect("its payload");
            kinds.push(header[3]);
        }
        drop((stop, peer));
    });
}
