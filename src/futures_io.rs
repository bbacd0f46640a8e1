//! The traits of [`futures_io`] for [`Connection`], [`Reader`](crate::Reader) and [`Writer`](crate::Writer), for `TlsConnection`, and for
//! `&mut` of them; and a [`Stream`] of accepted connections.
//!
//! [`AsyncRead`] copies; [`AsyncBufRead`] gives what was received where it lies. A write takes a copy of what there is room for
//! below the connection's watermark, and waits while there is none. It needs no flush: what is written goes out
//! with the end of the poller's turn, whoever wrote it, in one send. `poll_flush` waits for room, and not until everything is sent;
//! `poll_close` sends all, and then the FIN.
//!
//! Some of the traits' methods have the names of others that a connection has itself, such as `read`, `write`, `split` and `close`:
//! those have to be called by the trait's name.
//!
//! A future that is dropped in the middle loses nothing: what was received stays in the connection, what was
//! written is on its way.
//!
//! ```no_run
//! use duopoll::Listener;
//! use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
//!
//! # async fn example() -> std::io::Result<()> {
//! let mut incoming = Listener::bind("127.0.0.1:8080")?.into_incoming();
//! while let Some(connection) = incoming.next().await {
//!     let mut connection = connection?;
//!     let mut greeting = [0; 5];
//!     connection.read_exact(&mut greeting).await?;
//!     connection.write_all(&greeting).await?;
//!     AsyncWriteExt::close(&mut connection).await?;
//! }
//! # Ok(()) }
//! ```

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::futures_io::{AsyncBufRead, AsyncRead, AsyncWrite};
use futures_core::Stream;

use crate::connection::Connection;
use crate::listener::Listener;
#[cfg(feature = "rustls")]
use crate::tls::TlsConnection;

/// The traits, by what the halves have.
macro_rules! implement {
    ($stream:ty, $reader:ident, $writer:ident) => {
        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                target: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                self.get_mut().$reader().poll_read(cx, target)
            }

            fn poll_read_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                targets: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                let stream = self.get_mut();
                if targets.iter().all(|target| target.is_empty())
                    || !ready!(stream.$reader().poll_buffered(cx))?
                {
                    return Poll::Ready(Ok(0));
                }
                let input = stream.input_mut();
                Poll::Ready(Ok(targets.iter_mut().map(|target| input.copy_to(target)).sum()))
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

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.get_mut().$writer().poll_flush(cx)
            }

            fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.get_mut().$writer().poll_finish(cx)
            }
        }
    };
}

implement!(Connection, reader_mut, writer_mut);
#[cfg(feature = "rustls")]
implement!(TlsConnection, reader, writer);

/// Connections as they are accepted; see [`Listener::into_incoming`]. It ends never: errors are as of [`Listener::accept`].
pub struct Incoming {
    listener: Arc<Listener>,
    accept: Option<Accept>,
}

type Accept = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send + Sync>>;

impl Listener {
    /// The connections that it accepts, as a stream.
    pub fn into_incoming(self) -> Incoming {
        Incoming { listener: Arc::new(self), accept: None }
    }
}

impl Incoming {
    /// What they are accepted from.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let listener = self.listener.clone();
        let begin = || Box::pin(async move { listener.accept().await }) as Accept;
        let accepted = ready!(self.accept.get_or_insert_with(begin).as_mut().poll(cx));
        self.accept = None;
        Poll::Ready(Some(accepted))
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("listener", &self.listener).finish_non_exhaustive()
    }
}
