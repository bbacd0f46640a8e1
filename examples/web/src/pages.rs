//! What the web servers show: text, JSON, a body that is streamed, uploads, and this file.

use std::convert::Infallible;
use std::io;

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use duopoll::task;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};

/// How many numbers a piece of a streamed body has.
const NUMBERS: u64 = 1000;

pub(crate) fn router() -> Router {
    Router::new()
        .route("/", get(async || "hello\n"))
        .route("/sum", post(sum))
        .route("/count/{to}", get(count))
        .route("/upload", put(upload).post(upload))
        .route("/source", get(source))
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
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/pages.rs");
    let read = task::spawn_blocking(move || std::fs::read(path)).await;
    match read.map_err(io::Error::from).and_then(|read| read) {
        Ok(source) => ([(CONTENT_TYPE, "text/plain; charset=utf-8")], source).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
    }
}
