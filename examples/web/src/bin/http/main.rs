//! A web server: an axum `Router` on the pollers, by HTTP/1 and HTTP/2, with TLS or without, and a WebSocket.
//!
//! ```text
//! cargo run --release -p duopoll-web -- --listen 127.0.0.1:8080 --pollers 2
//! curl http://127.0.0.1:8080/
//! curl http://127.0.0.1:8080/sum -H 'content-type: application/json' -d '{"numbers": [1, 2, 3]}'
//! curl --http2-prior-knowledge http://127.0.0.1:8080/count/1000000 | tail -n 1
//! curl http://127.0.0.1:8080/upload -T some-file
//! curl http://127.0.0.1:8080/source
//! websocat ws://127.0.0.1:8080/socket
//! ```
//!
//! With `--tls` the certificate is one that nobody knows: `curl --insecure https://127.0.0.1:8080/`, or
//! `--tls-certificate /tmp/localhost.pem` there and `curl --cacert /tmp/localhost.pem https://localhost:8080/` here.

#[path = "../../../../common/flags.rs"]
mod flags;
#[path = "../../pages.rs"]
mod pages;
mod socket;
#[cfg(feature = "rustls")]
#[path = "../../certificate.rs"]
mod tls;

use std::process::ExitCode;

use axum::routing::get;
use duopoll::Connection;
use duopoll::hyper::Http;

const PROGRAM: flags::Program = flags::Program {
    about: "A web server of a few pages: /, /sum (JSON), /count/N (streamed), /upload, /source, /socket (WebSocket).",
    listen: "127.0.0.1:8080",
    tls: true,
    password: false,
};

fn main() -> ExitCode {
    flags::main(&PROGRAM, |flags| {
        let router = pages::router().route("/socket", get(socket::accept));
        let http = Http::new();
        #[cfg(feature = "rustls")]
        if let Some(certificate) = flags.tls() {
            let acceptor = tls::acceptor(&["h2", "http/1.1"], certificate)?;
            let service = flags.builder().on_connection(async move |connection: Connection| {
                let connection = acceptor.accept(connection).await?;
                http.serve_tower(connection, router.clone()).await
            });
            return service.serve(flags.listener()?);
        }
        let service = flags.builder().on_connection(async move |connection: Connection| {
            http.serve_tower(connection, router.clone()).await
        });
        service.serve(flags.listener()?)
    })
}
