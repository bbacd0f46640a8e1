//! A connection as what hyper reads from and writes to.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use ::hyper::rt::{Read, ReadBufCursor, Write};

use crate::connection::Connection;
#[cfg(feature = "rustls")]
use crate::tls::TlsConnection;

/// The traits, by what the halves have.
macro_rules! implement {
    ($stream:ty, $reader:ident, $writer:ident) => {
        /// hyper waits for its peer all the time, also while a service works: so the limits for reading do not count, see
        /// [`Http`](super::Http).
        impl Read for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                mut target: ReadBufCursor<'_>,
            ) -> Poll<io::Result<()>> {
                let room = target.remaining();
                self.get_mut()
                    .$reader()
                    .poll_copy_whatever(cx, room, |chunk| target.put_slice(chunk))
            }
        }

        /// What is written needs no flush, as with a `TcpStream`; shutting down sends all, and then the FIN.
        impl Write for $stream {
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
                let this = self.get_mut();
                // hyper flushes when it holds nothing any more.
                this.$writer().flushed();
                this.$writer().poll_flush(cx)
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
