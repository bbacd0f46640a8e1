//! compio-quic: the same protocol with sockets, timers and streams of its own, on io_uring.

use std::io;

use compio::BufResult;
use compio::net::UdpSocket;
use compio::runtime::{Runtime, spawn};
use compio_quic::{Endpoint, EndpointConfig, RecvStream, SendStream};

use super::service::{Failure, chunks, wanted};
use super::shape::{Ask, Progress};
use super::{Options, config};

/// Serves until the endpoint fails.
pub fn serve(options: &Options) -> io::Result<()> {
    Runtime::new()?.block_on(accept(options))
}

async fn accept(options: &Options) -> io::Result<()> {
    let server = config::server(&options.certificate)?;
    let socket = UdpSocket::from_std(config::bind(options.listen)?)?;
    let endpoint = Endpoint::new(socket, EndpointConfig::default(), Some(server), None)?;
    let ask = options.ask;
    while let Some(incoming) = endpoint.wait_incoming().await {
        spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok(stream) = connection.accept_bi().await {
                spawn(answer(ask, stream)).detach();
            }
        })
        .detach();
    }
    Ok(())
}

async fn answer(ask: Ask, stream: (SendStream, RecvStream)) {
    let _ = match ask {
        Ask::Echo => echo(stream).await,
        Ask::Receive => receive(stream).await,
        Ask::Send => send(stream).await,
    };
}

async fn echo((mut send, mut receive): (SendStream, RecvStream)) -> Result<(), Failure> {
    let BufResult(result, request) = receive.read_to_end(Vec::new()).await;
    result?;
    send.write_all_chunks(&mut [request.into()]).await?;
    Ok(send.finish()?)
}

async fn receive((mut send, mut receive): (SendStream, RecvStream)) -> Result<(), Failure> {
    let mut progress = Progress::default();
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        for _ in 0..progress.advance(chunk.bytes.len()) {
            send.write_all_chunks(&mut [vec![1].into()]).await?;
        }
    }
    Ok(send.finish()?)
}

async fn send((mut send, mut receive): (SendStream, RecvStream)) -> Result<(), Failure> {
    let BufResult(result, request) = receive.read_to_end(Vec::new()).await;
    result?;
    for chunk in chunks(wanted(&request)?) {
        send.write_all_chunks(&mut [chunk]).await?;
    }
    Ok(send.finish()?)
}
