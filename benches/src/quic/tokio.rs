//! quinn on tokio, as in its own example: a task a connection, a task a stream.

use std::io;
use std::sync::Arc;

use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use tokio::runtime::Builder;

use super::{Options, config, service};

/// One thread.
pub fn serve_current_thread(options: &Options) -> io::Result<()> {
    serve(options, Builder::new_current_thread())
}

/// The runtime of `#[tokio::main]`, with as many workers as there are threads. The accept loop is a task of its own, so that it
/// runs on a worker too.
pub fn serve_multi_thread(options: &Options) -> io::Result<()> {
    let mut runtime = Builder::new_multi_thread();
    runtime.worker_threads(options.threads);
    serve(options, runtime)
}

fn serve(options: &Options, mut runtime: Builder) -> io::Result<()> {
    let runtime = runtime.enable_all().build()?;
    let accept = accept(options.clone());
    runtime.block_on(async { tokio::spawn(accept).await.map_err(io::Error::other)? })
}

async fn accept(options: Options) -> io::Result<()> {
    let server = config::server(&options.certificate)?;
    let socket = config::bind(options.listen)?;
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime)?;
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok(stream) = connection.accept_bi().await {
                tokio::spawn(service::answer(options.ask, stream));
            }
        });
    }
    Ok(())
}
