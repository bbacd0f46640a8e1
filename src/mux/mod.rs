//! Many calls at once on one connection: messages with numbers, whose replies come in any order.
//!
//! A [`Client`] sends requests, each with a number, and gives the reply that has the same to whoever called. [`serve`] is the other
//! end: it calls a handler for each request, as many at once as it is allowed to, and sends their replies as they are ready. What
//! messages look like says a [`Protocol`]; [`Plain`] is one to begin with. A [`Pool`] has several connections to one server, and dials
//! them again when they end.
//!
//! ```no_run
//! use duopoll::mux::{self, Plain};
//! use duopoll::{Connection, Dialer, EventLoop, LinkBuffer, Listener, Slice};
//! use std::time::Duration;
//!
//! # async fn example() -> std::io::Result<()> {
//! let server = EventLoop::builder()
//!     .on_connection(async |connection: Connection| {
//!         let echo = async |request: Slice| Ok(LinkBuffer::from(request));
//!         mux::serve(connection, Plain, mux::CALLS_MAX, echo).await
//!     })
//!     .serve_async(Listener::bind("127.0.0.1:7100")?)
//!     .await?;
//!
//! let client = mux::Client::new(Dialer::new().dial("127.0.0.1:7100").await?, Plain)?;
//! let reply = client.call(&mut LinkBuffer::from(&b"hello"[..])).await?;
//! assert_eq!(reply, b"hello");
//! // Given up after a while; a reply that comes later is dropped.
//! let mut request = LinkBuffer::from(&b"again"[..]);
//! let late = duopoll::time::timeout(Duration::from_millis(50), client.call(&mut request)).await;
//! # Ok(()) }
//! ```

mod calls;
mod client;
mod numbers;
mod pool;
mod protocol;
mod room;
mod server;

pub use client::{Client, ClientOptions};
pub use pool::Pool;
pub use protocol::{Head, Kind, Plain, Protocol};
pub use server::{CALLS_MAX, serve};
