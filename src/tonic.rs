//! Connections for tonic's own server, which runs on tokio's runtime: `Server::serve_with_incoming` takes a
//! [stream of them](crate::futures_io::Incoming).
//!
//! tonic's `Routes` need none of this to be served on the pollers, by [`Http::serve_tower`](crate::hyper::Http::serve_tower), which costs
//! less. What tonic's `Server` does around them has to be done by layers then: deadlines (`grpc-timeout`), and the peer's address, which
//! a service made for the connection puts into the request's extensions, as `TcpConnectInfo` for `Request::remote_addr`; the example
//! `grpc` has both. Of tonic's client only what lies above a channel runs on pollers: its `transport::Channel` needs tokio's timers.
//!
//! hyper waits for its peer all the time, so connections for it have neither a read nor an idle timeout in
//! [`Listener::limits`](crate::Listener::limits): these would end them in the middle of a call.
//!
//! ```no_run
//! use duopoll::Listener;
//! use tonic::service::Routes;
//! use tonic::transport::Server;
//!
//! # async fn example(routes: Routes) -> Result<(), Box<dyn std::error::Error>> {
//! let incoming = Listener::bind("127.0.0.1:50051")?.into_incoming();
//! Server::builder().add_routes(routes).serve_with_incoming(incoming).await?;
//! # Ok(()) }
//! ```

use std::io;

use ::tonic::transport::server::{Connected, TcpConnectInfo};

use crate::address::Address;
use crate::connection::Connection;

/// The addresses, as `Request::remote_addr` and `Request::local_addr` have them.
impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        let tcp = |address: io::Result<Address>| address.ok()?.tcp();
        TcpConnectInfo { local_addr: tcp(self.local_addr()), remote_addr: tcp(self.peer_addr()) }
    }
}

#[cfg(feature = "rustls")]
impl Connected for crate::tls::TlsConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.connection().connect_info()
    }
}
