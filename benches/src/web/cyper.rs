//! axum on compio, as the documentation of cyper-axum shows.

use std::io;

use axum::routing::get;
use compio::net::TcpListener;
use compio::runtime::Runtime;

use super::shape::{Ask, HELLO};
use super::{Options, service};
use crate::sys;

/// One thread.
pub fn serve(options: &Options) -> io::Result<()> {
    let router = service::router().route(Ask::Hello.path(), get(async || HELLO));
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(options.listen).await?;
        sys::set_nodelay(&listener)?;
        cyper_axum::serve(listener, router).await
    })
}
