//! quinn on this project: an endpoint a poller, a task a connection, a task a stream.

use std::future;
use std::io;

use ::duopoll::quinn::Endpoints;
use ::duopoll::task::spawn_local;
use ::duopoll::udp::UdpSocket;
use ::duopoll::{Engine, Pollers};
use quinn::EndpointConfig;

use super::{Options, config, service};

/// As many pollers as there are threads, one of them on this one.
pub fn serve(options: &Options, engine: Engine) -> io::Result<()> {
    let pollers = Pollers::options().engine(engine).count(options.threads);
    pollers.block_on(answer(options))?
}

async fn answer(options: &Options) -> io::Result<()> {
    let server = config::server(&options.certificate)?;
    let socket = UdpSocket::options().receive_buffer_bytes(config::RECEIVE_BUFFER_BYTES);
    let pollers = Pollers::current().ok_or_else(|| io::Error::other("not on a poller"))?;
    let config = EndpointConfig::default();
    let endpoints = Endpoints::bind(&pollers, socket, options.listen, config, Some(server))?;
    let ask = options.ask;
    endpoints.serve(async move |incoming| {
        let Ok(connection) = incoming.await else { return };
        while let Ok(stream) = connection.accept_bi().await {
            drop(spawn_local(service::answer(ask, stream)));
        }
    });
    future::pending().await
}
