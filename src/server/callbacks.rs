//! What a server calls once in the life of each connection.

use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::Connection;

/// What is called once in a connection's life.
#[derive(Clone, Default)]
pub(super) struct Callbacks {
    pub(super) prepare: Option<Arc<Prepare>>,
    pub(super) connect: Option<Arc<Connect>>,
    pub(super) disconnect: Option<Arc<Disconnect>>,
    /// How long a request may take to arrive.
    pub(super) request_timeout: Option<Duration>,
}

pub(super) type Prepare = dyn Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync;
pub(super) type Connect =
    dyn for<'a> Fn(&'a mut Connection) -> LocalFuture<'a, io::Result<()>> + Send + Sync;
pub(super) type Disconnect =
    dyn for<'a> Fn(&'a mut Connection) -> LocalFuture<'a, ()> + Send + Sync;
type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
