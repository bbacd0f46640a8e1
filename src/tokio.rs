//! The traits of [`tokio::io`] for [`Connection`], [`Reader`](crate::Reader) and [`Writer`](crate::Writer), and for `&mut` of them:
//! codecs, WebSockets, TLS and whatever else takes an [`AsyncRead`] and [`AsyncWrite`]. They need no runtime of tokio's.
//!
//! [`AsyncRead`] copies; [`AsyncBufRead`] gives what was received where it lies. A write takes a copy of what there is room for
//! below the connection's watermark, and waits while there is none. It needs no flush, as with tokio's `TcpStream`: what is
//! written goes out
//! with the end of the poller's turn, whoever wrote it, in one send. `poll_flush` waits for room, and not until everything is sent;
//! `poll_shutdown` sends all, and then the FIN.
//!
//! Some of the traits' methods have the names of others that a connection has itself, such as `read`, `write` and `split`: those
//! have to be called by the trait's name.
//!
//! A future that is dropped in the middle loses nothing: what was received stays in the connection, what was
//! written is on its way.
//!
//! ```no_run
//! use duopoll::{Connection, EventLoop, Listener};
//! use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
//!
//! let server = EventLoop::builder()
//!     .on_connection(async |connection: Connection| {
//!         let (reader, mut writer) = connection.into_split();
//!         let mut lines = reader.lines();
//!         while let Some(line) = lines.next_line().await? {
//!             writer.write_all(line.to_uppercase().as_bytes()).await?;
//!             writer.write_all(b"\n").await?;
//!         }
//!         writer.shutdown().await
//!     })
//!     .serve(Listener::bind("127.0.0.1:8080")?)?;
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use ::tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(self.get_mut().reader()), cx, target)
    }
}

impl AsyncBufRead for Connection {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        AsyncBufRead::poll_fill_buf(Pin::new(self.get_mut().reader()), cx)
    }

    fn consume(self: Pin<&mut Self>, n: usize) {
        AsyncBufRead::consume(Pin::new(self.get_mut().reader()), n);
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(self.get_mut().writer()), cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write_vectored(Pin::new(self.get_mut().writer()), cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(self.get_mut().writer()), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(self.get_mut().writer()), cx)
    }
}
