//! HTTP/1 and HTTP/2 by hyper, on the pollers: its traits for [`Connection`](crate::Connection), timers and tasks for it,
//! and [`Http`], which serves connections with a service of hyper's or tower's, such as an axum `Router`.
//!
//! ```no_run
//! use std::convert::Infallible;
//!
//! use duopoll::hyper::Http;
//! use duopoll::{Connection, EventLoop, Listener};
//! use hyper::body::Incoming;
//! use hyper::service::service_fn;
//! use hyper::{Request, Response};
//!
//! async fn hello(_: Request<Incoming>) -> Result<Response<String>, Infallible> {
//!     Ok(Response::new("hello\n".to_owned()))
//! }
//!
//! let http = Http::new();
//! let server = EventLoop::builder()
//!     .on_connection(async move |connection: Connection| {
//!         http.serve(connection, service_fn(hello)).await
//!     })
//!     .serve(Listener::bind("127.0.0.1:8080")?)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A service is made for each connection, so it may know of it: here an axum `Router` whose handlers are told the peer's address.
//!
//! ```no_run
//! use axum::extract::ConnectInfo;
//! use axum::{Router, routing::get};
//! use duopoll::hyper::Http;
//! use duopoll::{Address, Connection, EventLoop, Listener};
//! use hyper::Request;
//! use hyper::body::Incoming;
//! use hyper::service::service_fn;
//! use tower_service::Service;
//!
//! let hello = get(async |ConnectInfo(peer): ConnectInfo<Address>| format!("hello {peer}\n"));
//! let (http, router) = (Http::new(), Router::new().route("/", hello));
//! let server = EventLoop::builder()
//!     .on_connection(async move |connection: Connection| {
//!         let (peer, router) = (ConnectInfo(connection.peer_addr()?), router.clone());
//!         let service = service_fn(move |mut request: Request<Incoming>| {
//!             request.extensions_mut().insert(peer.clone());
//!             router.clone().call(request)
//!         });
//!         http.serve(connection, service).await
//!     })
//!     .serve(Listener::bind("127.0.0.1:8080")?)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Over TLS, with the version of HTTP by ALPN:
//!
//! ```no_run
//! # #[cfg(feature = "rustls")]
//! # fn example(config: std::sync::Arc<rustls::ServerConfig>, router: axum::Router) -> std::io::Result<()> {
//! use duopoll::hyper::Http;
//! use duopoll::tls::TlsAcceptor;
//! use duopoll::{Connection, EventLoop, Listener};
//!
//! // `config.alpn_protocols` has "h2" and "http/1.1".
//! let (http, tls) = (Http::new(), TlsAcceptor::new(config));
//! let server = EventLoop::builder()
//!     .on_connection(async move |connection: Connection| {
//!         http.serve_tower(tls.accept(connection).await?, router.clone()).await
//!     })
//!     .serve(Listener::bind("127.0.0.1:8443")?)?;
//! # Ok(()) }
//! ```
//!
//! A connection that changes to another protocol goes on as a task, or wherever it is sent:
//!
//! ```
//! use duopoll::hyper::upgrade;
//! use duopoll::{Connection, task};
//! use http_body_util::Empty;
//! use hyper::body::{Bytes, Incoming};
//! use hyper::{Request, Response, StatusCode};
//!
//! async fn change(mut request: Request<Incoming>) -> hyper::Result<Response<Empty<Bytes>>> {
//!     let upgrade = upgrade::on(&mut request);
//!     task::spawn_local(async move {
//!         let Ok(parts) = upgrade.await?.downcast::<Connection>() else { return Ok(()) };
//!         // What has come behind the request already.
//!         let (mut connection, early) = (parts.io, parts.read_buf);
//!         connection.push(early);
//!         connection.flush().await.map_err(Box::<dyn std::error::Error>::from)
//!     });
//!     let mut response = Response::new(Empty::new());
//!     *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
//!     response.headers_mut().insert("connection", "upgrade".parse().expect("a value"));
//!     response.headers_mut().insert("upgrade", "echo".parse().expect("a value"));
//!     Ok(response)
//! }
//! ```
//!
//! Handlers are on no runtime of tokio's. What needs one, as axum's own `WebSocketUpgrade` does, which spawns a task, finds it with
//! [`on_thread_start`](crate::Builder::on_thread_start).
//!
//! As a client, hyper's `client::conn::http1::handshake` and `http2::handshake` take a [`Connection`](crate::Connection), with
//! [`LocalExecutor`] and [`PollerTimer`].
//!
//! hyper copies what it reads and writes, once in each direction. What it writes goes out with the end of the poller's turn, in one send.

mod controlled;
mod http;
mod io;
mod request;
mod run;
mod serve;
mod settings;

/// For connections that change to another protocol.
pub use ::hyper::upgrade;
pub use controlled::Controlled;
pub use http::Http;
pub use run::{LocalExecutor, PollerTimer};
