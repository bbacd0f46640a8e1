//! monoio-http on io_uring: a task a connection, which decodes, answers and encodes in turn.

use std::io;

use bytes::Bytes;
use hyper::{Response, StatusCode};
use monoio::io::Splitable;
use monoio::io::sink::SinkExt;
use monoio::io::stream::Stream;
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};
use monoio_http::common::error::HttpError;
use monoio_http::h1::codec::decoder::RequestDecoder;
use monoio_http::h1::codec::encoder::GenericEncoder;
use monoio_http::h1::payload::{FixedPayload, Payload};

use super::Options;
use super::shape::{Ask, CATALOGUE, HELLO};
use crate::sys;

/// One thread.
pub fn serve(options: &Options) -> io::Result<()> {
    RuntimeBuilder::<IoUringDriver>::new().build()?.block_on(async {
        let listener = TcpListener::bind(options.listen)?;
        sys::set_nodelay(&listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            monoio::spawn(converse(stream));
        }
    })
}

async fn converse(stream: TcpStream) -> Result<(), HttpError> {
    let (reader, writer) = stream.into_split();
    let mut encoder = GenericEncoder::new(writer);
    let mut decoder = RequestDecoder::new(reader);
    while let Some(request) = decoder.next().await {
        let answer = answer(request?.uri().path());
        encoder.send_and_flush(answer).await?;
    }
    Ok(())
}

fn answer(path: &str) -> Response<Payload> {
    let body = if path == Ask::Hello.path() {
        Bytes::from_static(HELLO.as_bytes())
    } else if path == Ask::Json.path() {
        serde_json::to_vec(&*CATALOGUE).unwrap_or_default().into()
    } else {
        let mut missing = Response::new(Payload::None);
        *missing.status_mut() = StatusCode::NOT_FOUND;
        return missing;
    };
    Response::new(Payload::Fixed(FixedPayload::new(body)))
}
