//! The services on this project.

use std::io;

use ::duopoll::hyper::Http;
use ::duopoll::tls::TlsAcceptor;
use ::duopoll::{Connection, Engine, EventLoop, Listener};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};

use super::service::{self, BoxError, Serve};
use super::{Options, certificate};

/// As many pollers as there are threads, one of them on this one.
pub fn serve(options: &Options, engine: Engine) -> io::Result<()> {
    service::serve(options.app, OnPollers { options, engine })
}

struct OnPollers<'a> {
    options: &'a Options,
    engine: Engine,
}

impl Serve for OnPollers<'_> {
    fn serve<S, B>(self, service: S) -> io::Result<()>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let http = Http::new();
        let tls = self.options.tls.as_deref().map(certificate::server).transpose()?;
        let tls = tls.map(TlsAcceptor::new);
        let builder = EventLoop::builder().engine(self.engine).pollers(self.options.threads);
        let builder = builder.pinned(self.options.pinned);
        let served = builder.on_connection(async move |connection: Connection| match &tls {
            None => http.serve(connection, service.clone()).await,
            Some(tls) => http.serve(tls.accept(connection).await?, service.clone()).await,
        });
        let listener = Listener::bind(self.options.listen.to_string().as_str())?;
        served.serve_here(listener, |_| std::future::pending())?;
        Ok(())
    }
}
