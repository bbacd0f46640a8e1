//! The traits of [`tokio::io`] for [`Connection`], [`Reader`](crate::Reader) and [`Writer`](crate::Writer), for `TlsConnection`, and for
//! `&mut` of them:
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
use std::task::{Context, Poll, ready};

use ::tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;
#[cfg(feature = "rustls")]
use crate::tls::TlsConnection;

/// The traits, by what the halves have.
macro_rules! implement {
    ($stream:ty, $reader:ident, $writer:ident) => {
        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                target: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let room = target.remaining();
                self.get_mut().$reader().poll_copy(cx, room, |chunk| target.put_slice(chunk))
            }
        }

        impl AsyncBufRead for $stream {
            fn poll_fill_buf(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<io::Result<&[u8]>> {
                let stream = self.get_mut();
                ready!(stream.$reader().poll_buffered(cx))?;
                Poll::Ready(Ok(stream.input_mut().first_chunk()))
            }

            fn consume(self: Pin<&mut Self>, n: usize) {
                let consumed = self.get_mut().input_mut().skip(n);
                debug_assert!(consumed.is_ok(), "more is consumed than there was");
            }
        }

        impl AsyncWrite for $stream {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.get_mut().$writer().poll_write(cx, &[IoSlice::new(bytes)])
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                pieces: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.get_mut().$writer().poll_write(cx, pieces)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.get_mut().$writer().poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.get_mut().$writer().poll_finish(cx)
            }
        }
    };
}

implement!(Connection, reader_mut, writer_mut);
#[cfg(feature = "rustls")]
implement!(TlsConnection, reader, writer);
