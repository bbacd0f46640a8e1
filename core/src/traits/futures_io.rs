//! [`futures_io`]'s traits.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncBufRead, AsyncRead, AsyncWrite};

use crate::connection::{Reader, Writer};

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_read(cx, target)
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        targets: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let reader = self.get_mut();
        if targets.iter().all(|target| target.is_empty()) || !ready!(reader.poll_buffered(cx))? {
            return Poll::Ready(Ok(0));
        }
        let buffer = reader.buffer_mut();
        Poll::Ready(Ok(targets.iter_mut().map(|target| buffer.copy_to(target)).sum()))
    }
}

/// Without a copy.
impl AsyncBufRead for Reader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let reader = self.get_mut();
        ready!(reader.poll_buffered(cx))?;
        Poll::Ready(Ok(reader.buffer_mut().first_chunk()))
    }

    fn consume(self: Pin<&mut Self>, n: usize) {
        let consumed = self.get_mut().buffer_mut().skip(n);
        debug_assert!(consumed.is_ok(), "more is consumed than there was");
    }
}

/// What is written needs no flush, as with a `TcpStream`.
impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, pieces)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_finish(cx)
    }
}
