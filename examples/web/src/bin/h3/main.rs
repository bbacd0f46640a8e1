//! The pages of `http` by HTTP/3 as well: over QUIC at the UDP port of the same number, of which who comes over TCP is told. Limits and timeouts of connections are for those over TCP;
//! QUIC has quinn's own.
//!
//! ```text
//! cargo run --release -p duopoll-web --bin h3 -- --listen 127.0.0.1:8443 --pollers 2 --tls-certificate /tmp/localhost.pem
//! curl --http3 --cacert /tmp/localhost.pem https://localhost:8443/
//! curl --head --cacert /tmp/localhost.pem https://localhost:8443/
//! ```
//!
//! A client that does not know the certificate is told to trust it: `curl --http3 --insecure`. Few builds of curl have HTTP/3; aioquic and quic-go
//! speak it, too.
//!
//! Not for the open Internet as it stands: h3 0.0.8 collects a frame of a head, of trailers or of a control stream whole before it looks at any limit, so a
//! client that announces a large one has memory by sending it.

#[path = "../../../../common/flags.rs"]
mod flags;
#[path = "../../pages.rs"]
mod pages;
mod requests;
#[path = "../../certificate.rs"]
mod tls;

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::http::header::{ALT_SVC, HeaderValue};
use axum::middleware::map_response;
use axum::response::Response;
use duopoll::hyper::Http;
use duopoll::quinn::Endpoints;
use duopoll::task::TaskGroup;
use duopoll::tls::TlsAcceptor;
use duopoll::udp::UdpSocket;
use duopoll::{Address, Connection, Server};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{EndpointConfig, ServerConfig};

const PROGRAM: flags::Program = flags::Program {
    about: "A web server of a few pages by HTTP/1, HTTP/2 and HTTP/3, always with TLS: /, /sum (JSON), /count/N (streamed), /upload, /source.",
    listen: "127.0.0.1:8443",
    tls: true,
    password: false,
};

/// What a socket holds of what comes faster than it is read.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// If any port will do, that of the same number may be taken for UDP.
const PORTS: usize = 20;

fn main() -> ExitCode {
    let mut endpoints = None;
    let code = flags::main(&PROGRAM, |flags| {
        // One certificate, whichever way clients come.
        let mut config = tls::config(&["h2", "http/1.1"], flags.tls().flatten())?;
        let acceptor = TlsAcceptor::new(Arc::new(config.clone()));
        config.alpn_protocols = vec![b"h3".to_vec()];
        let config = QuicServerConfig::try_from(config).map_err(io::Error::other)?;
        let config = ServerConfig::with_crypto(Arc::new(config));

        for _ in 1..PORTS {
            let (server, connections) = serve_tcp(flags, acceptor.clone())?;
            match bind_udp(&server, config.clone()) {
                Ok(bound) => {
                    requests::serve(&bound, &pages::router(), &connections);
                    endpoints = Some(bound);
                    return Ok(server);
                }
                Err(error) if flags.any_port() && error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    });
    // Its connections have been seen off with the server's.
    drop(endpoints);
    code
}

/// HTTP/1 and 2, and the tasks that its shutdown waits for.
fn serve_tcp(flags: &flags::Flags, acceptor: TlsAcceptor) -> io::Result<(Server, TaskGroup)> {
    let listener = flags.listener()?;
    let port = internet(&listener.local_addr()?)?.port();
    let (http, router) = (Http::new(), tells_of_http3(pages::router(), port)?);
    let connections = TaskGroup::new();
    let service = flags.builder().tasks(&connections);
    let service = service.on_connection(async move |connection: Connection| {
        let connection = acceptor.accept(connection).await?;
        http.serve_tower(connection, router.clone()).await
    });
    Ok((service.serve(listener)?, connections))
}

fn bind_udp(server: &Server, config: ServerConfig) -> io::Result<Endpoints> {
    let options = UdpSocket::options().receive_buffer_bytes(RECEIVE_BUFFER_BYTES);
    let (address, quic) = (internet(server.local_addr())?, EndpointConfig::default());
    Endpoints::bind(server.pollers(), options, address, quic, Some(config))
}

fn internet(address: &Address) -> io::Result<SocketAddr> {
    let Address::Tcp(address) = address else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "QUIC needs a HOST:PORT"));
    };
    Ok(*address)
}

/// Adds to each response that the same is at that UDP port.
fn tells_of_http3(router: Router, port: u16) -> io::Result<Router> {
    let here =
        HeaderValue::try_from(format!("h3=\":{port}\"; ma=3600")).map_err(io::Error::other)?;
    Ok(router.layer(map_response(move |mut response: Response| {
        response.headers_mut().insert(ALT_SVC, here.clone());
        ready(response)
    })))
}
