//! Connections for tonic's own server, which runs on tokio's runtime: `Server::serve_with_incoming` takes a
//! [stream of them](crate::futures_io::Incoming).
//!
//! tonic's `Routes` need none of this to be served on the pollers, by [`Http`](crate::hyper::Http), which costs less.
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

use ::tonic::transport::server::{Connected, TcpConnectInfo};

use crate::address::Address;
use crate::connection::Connection;

/// The addresses, as `Request::remote_addr` and `Request::local_addr` have them.
impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        let tcp = |address: Address| match address {
            Address::Tcp(address) => Some(address),
            _ => None,
        };
        TcpConnectInfo {
            local_addr: self.local_addr().ok().and_then(tcp),
            remote_addr: self.peer_addr().ok().and_then(tcp),
        }
    }
}

#[cfg(feature = "rustls")]
impl Connected for crate::tls::TlsConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.connection().connect_info()
    }
}
