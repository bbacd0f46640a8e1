//! What was said of how HTTP is served.

use std::time::Duration;

use ::hyper::server::conn::{http1, http2};

use crate::hyper::run::LocalExecutor;

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Builder<LocalExecutor>,
    pub(super) versions: Versions,
    pub(super) begin_timeout: Duration,
    pub(super) header_read_timeout: Option<Duration>,
}

/// Which versions are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Versions {
    Both,
    Http1,
    Http2,
}
