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
mod socket;
#[cfg(feature = "rustls")]
#[path = "../../certificate.rs"]
mod tls;

use std::convert::Infallible;
use std::io;
use std::process::ExitCode;

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use duopoll::hyper::Http;
use duopoll::{Connection, task};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};

const PROGRAM: flags::Program = flags::Program {
    about: "A web server of a few pages: /, /sum (JSON), /count/N (streamed), /upload, /source, /socket (WebSocket).",
    listen: "127.0.0.1:8080",
    tls: true,
};

/// How many numbers a piece of a streamed body has.
const NUMBERS: u64 = 1000;

fn main() -> ExitCode {
    flags::main(&PROGRAM, |flags| {
        let router = Router::new()
            .route("/", get(async || "hello\n"))
            .route("/sum", post(sum))
            .route("/count/{to}", get(count))
            .route("/upload", put(upload).post(upload))
            .route("/source", get(source))
            .route("/socket", get(socket::accept));
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

#[derive(Deserialize)]
struct Numbers {
    numbers: Vec<i64>,
}

#[derive(Serialize)]
struct Sum {
    sum: i64,
}

async fn sum(Json(Numbers { numbers }): Json<Numbers>) -> Json<Sum> {
    Json(Sum { sum: numbers.into_iter().fold(0, i64::wrapping_add) })
}

/// The numbers up to one, a line each, made while they are sent.
async fn count(Path(to): Path<u64>) -> Body {
    let pieces = (0..to.div_ceil(NUMBERS)).map(move |piece| {
        let numbers = piece * NUMBERS + 1..=((piece + 1) * NUMBERS).min(to);
        Ok::<_, Infallible>(numbers.map(|number| format!("{number}\n")).collect::<String>())
    });
    Body::from_stream(stream::iter(pieces))
}

/// Says how much has come, and holds on to none of it.
async fn upload(body: Body) -> Result<String, (StatusCode, String)> {
    let (mut bytes, mut sum) = (0_u64, 0_u32);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece: Bytes = piece.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        bytes += piece.len() as u64;
        sum = piece.iter().fold(sum, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    }
    Ok(format!("{bytes} bytes, which add up to {sum}\n"))
}

/// This file, read where it holds up no poller.
async fn source() -> Response {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/http/main.rs");
    let read = task::spawn_blocking(move || std::fs::read(path)).await;
    match read.map_err(io::Error::from).and_then(|read| read) {
        Ok(source) => ([(CONTENT_TYPE, "text/plain; charset=utf-8")], source).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
    }
}
