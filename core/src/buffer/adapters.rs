//! LinkBuffer as what the rest of the ecosystem reads from and writes to.

use std::{fmt, io};

use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::LinkBuffer;
use crate::memory::Slice;

/// Room that `BufMut::chunk_mut` gives at least, in bytes.
const CHUNK_BYTES_MIN: usize = 64;

impl Buf for LinkBuffer {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.first_chunk()
    }

    /// # Panics
    /// If `n` is more than [`len`](LinkBuffer::len), as the trait demands.
    fn advance(&mut self, n: usize) {
        assert!(self.skip(n).is_ok(), "advance({n}) beyond the {} readable bytes", self.len());
    }

    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        match self.next(n) {
            Ok(slice) => slice.into(),
            Err(error) => panic!("copy_to_bytes: {error}"),
        }
    }
}

// SAFETY: `chunk_mut` gives the spare room of the tail, and `advance_mut` commits within what was given.
unsafe impl BufMut for LinkBuffer {
    fn remaining_mut(&self) -> usize {
        usize::MAX - self.chain.len()
    }

    /// # Panics
    /// If `n` is more than [`chunk_mut`](BufMut::chunk_mut) gave last, as the trait demands.
    unsafe fn advance_mut(&mut self, n: usize) {
        // SAFETY: the caller promises that n bytes of the last chunk are initialised.
        let result = unsafe { self.commit(n) };
        assert!(result.is_ok(), "advance_mut({n}) beyond the chunk");
    }

    /// # Panics
    /// If there is no memory for another block: the trait has no way to say so.
    fn chunk_mut(&mut self) -> &mut UninitSlice {
        let room = self.intake.tail().map_or(0, crate::memory::Tail::remaining);
        match self.reserve(if room == 0 { CHUNK_BYTES_MIN } else { room }) {
            Ok(spare) => UninitSlice::uninit(spare),
            Err(error) => panic!("chunk_mut: {error}"),
        }
    }

    fn put_slice(&mut self, bytes: &[u8]) {
        if let Err(error) = self.write(bytes) {
            panic!("put_slice: {error}");
        }
    }
}

/// Written text is reserved, like the bytes of [`LinkBuffer::write`].
impl fmt::Write for LinkBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Reads copy out; an empty buffer reads as the end.
impl io::Read for LinkBuffer {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        Ok(self.copy_to(target))
    }
}

impl io::BufRead for LinkBuffer {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.first_chunk())
    }

    fn consume(&mut self, n: usize) {
        self.chain.advance(n.min(self.len()));
    }
}

/// Writes copy in and are reserved; `flush` makes them readable.
impl io::Write for LinkBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LinkBuffer::write(self, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        LinkBuffer::flush(self);
        Ok(())
    }
}

/// A readable buffer of these bytes, not copied.
impl From<Slice> for LinkBuffer {
    fn from(slice: Slice) -> LinkBuffer {
        let mut buffer = LinkBuffer::new();
        buffer.adopt(slice);
        buffer
    }
}

/// A readable buffer of these bytes, not copied.
impl From<Bytes> for LinkBuffer {
    fn from(bytes: Bytes) -> LinkBuffer {
        Slice::from(bytes).into()
    }
}

/// A readable buffer of these bytes, not copied.
impl From<BytesMut> for LinkBuffer {
    fn from(bytes: BytesMut) -> LinkBuffer {
        bytes.freeze().into()
    }
}

/// All readable bytes in one piece: not copied if they are one already. Reserved bytes are dropped.
impl From<LinkBuffer> for Bytes {
    fn from(mut buffer: LinkBuffer) -> Bytes {
        buffer.copy_to_bytes(buffer.len())
    }
}

/// All readable bytes in one piece. Always copied: a block cannot become a `BytesMut`.
impl From<LinkBuffer> for BytesMut {
    fn from(buffer: LinkBuffer) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(buffer.len());
        for chunk in buffer.chunks() {
            bytes.extend_from_slice(chunk);
        }
        bytes
    }
}
