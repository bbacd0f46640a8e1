//! The services on tokio: a task a connection.

use std::io;

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder as Http;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio_rustls::TlsAcceptor;

use super::service::{self, BoxError, Serve};
use super::{Options, certificate};
use crate::sys;

/// One thread.
pub fn serve_current_thread(options: &Options) -> io::Result<()> {
    service::serve(options.app, OnTokio { options, runtime: Builder::new_current_thread() })
}

/// The runtime of `#[tokio::main]`, with as many workers as there are threads. The accept loop is a task of its own, so
/// that it runs on a worker too.
pub fn serve_multi_thread(options: &Options) -> io::Result<()> {
    let mut runtime = Builder::new_multi_thread();
    runtime.worker_threads(options.threads);
    service::serve(options.app, OnTokio { options, runtime })
}

struct OnTokio<'a> {
    options: &'a Options,
    runtime: Builder,
}

impl Serve for OnTokio<'_> {
    fn serve<S, B>(mut self, service: S) -> io::Result<()>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let mut http = Http::new(TokioExecutor::new());
        service::configure(&mut http, TokioTimer::new());
        let tls = self.options.tls.as_deref().map(certificate::server).transpose()?;
        let tls = tls.map(TlsAcceptor::from);
        let listen = self.options.listen;
        let accept = async move {
            let listener = TcpListener::bind(listen).await?;
            sys::set_nodelay(&listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                let (http, tls, service) = (http.clone(), tls.clone(), service.clone());
                // What becomes of a connection is the client's to say.
                tokio::spawn(async move {
                    let _ = match tls {
                        None => {
                            let io = TokioIo::new(stream);
                            http.serve_connection_with_upgrades(io, service).await
                        }
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            let io = TokioIo::new(stream);
                            http.serve_connection_with_upgrades(io, service).await
                        }
                    };
                });
            }
        };
        let runtime = self.runtime.enable_all().build()?;
        runtime.block_on(async { tokio::spawn(accept).await.map_err(io::Error::other)? })
    }
}
