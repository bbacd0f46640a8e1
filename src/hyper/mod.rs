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
//! hyper copies what it reads and writes, once in each direction. What it writes goes out with the end of the poller's turn, in one send.

mod controlled;
mod http;
mod io;
mod request;
mod run;
mod serve;

/// For connections that change to another protocol.
pub use ::hyper::upgrade;
pub use controlled::Controlled;
pub use http::Http;
pub use run::{LocalExecutor, PollerTimer};
