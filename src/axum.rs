//! A [`Listener`] for `axum::serve`, which runs on tokio's runtime: what it needs of it, but for the sockets.
//!
//! A `Router` needs none of this to be served on the pollers, by [`Http`](crate::hyper::Http), which costs less. This is for
//! programs that have a runtime, and something of axum's own that wants it.
//!
//! `axum::serve` has no timeout for the head of a request, and no limit for streams; where that is needed and a runtime too,
//! hyper-util's `auto::Builder` takes a [`Connection`] as it is. hyper waits for its peer all the time, so connections for it have neither
//! a read nor an idle timeout in [`Listener::limits`]: these would end them in the middle of a request. With Unix sockets, peers have
//! no `SocketAddr`: handlers ask for `ConnectInfo<Address>`, as here.
//!
//! ```no_run
//! use axum::extract::ConnectInfo;
//! use axum::{Router, routing::get};
//! use duopoll::{Address, Listener};
//!
//! # async fn example() -> std::io::Result<()> {
//! let router = Router::new()
//!     .route("/", get(async |ConnectInfo(peer): ConnectInfo<Address>| format!("hello {peer}\n")));
//! let listener = Listener::bind("127.0.0.1:8080")?;
//! axum::serve(listener, router.into_make_service_with_connect_info::<Address>()).await
//! # }
//! ```

use std::future::pending;
use std::io;
use std::time::Duration;

use ::axum::extract::connect_info::Connected;
use ::axum::serve::{IncomingStream, Listener as AxumListener};

use crate::address::Address;
use crate::connection::Connection;
use crate::listener::Listener;
use crate::time::sleep;

/// What is waited for after an error of the listener, which goes on by itself.
const RETRY: Duration = Duration::from_secs(1);

/// Errors are logged, and it goes on; when its pollers have ended it waits for ever. A connection whose peer has gone before it was taken
/// is passed over.
impl AxumListener for Listener {
    type Io = Connection;
    type Addr = Address;

    async fn accept(&mut self) -> (Connection, Address) {
        loop {
            match Listener::accept(self).await {
                Ok(connection) => {
                    if let Ok(address) = connection.peer_addr() {
                        return (connection, address);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                    log::error!("nothing is accepted any more: {error}");
                    pending().await
                }
                Err(error) => {
                    log::error!("accepting: {error}");
                    sleep(RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Listener::local_addr(self)
    }
}

impl Connected<IncomingStream<'_, Listener>> for Address {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Address {
        stream.remote_addr().clone()
    }
}
