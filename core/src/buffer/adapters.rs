//! LinkBuffer as what the rest of the ecosystem reads from and writes to.

use std::io::IoSlice;
use std::{fmt, io};

use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::link_buffer::LinkBuffer;
use crate::buffer::BufferSeam;
use crate::memory::Slice;

/// Room that `BufMut::chunk_mut` gives at least, in bytes.
const CHUNK_BYTES_MIN: usize = 64;

/// The readable bytes: numbers of both endiannesses, and whatever else takes a `Buf`.
///
/// ```
/// use bytes::{Buf, BufMut};
/// # extern crate duopoll_core as duopoll;
/// use duopoll::LinkBuffer;
///
/// let mut buffer = LinkBuffer::new();
/// buffer.put_u32(5);                  // network order
/// buffer.put_u16_le(7);
/// buffer.flush();
/// assert_eq!(buffer.try_get_u32(), Ok(5));
/// assert_eq!(buffer.get_u16_le(), 7);
/// assert!(buffer.try_get_u8().is_err());
/// ```
impl Buf for LinkBuffer {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.first_chunk()
    }

    fn chunks_vectored<'a>(&'a self, vectors: &mut [IoSlice<'a>]) -> usize {
        let filled = vectors.iter_mut().zip(self.chunks()).map(|(vector, chunk)| {
            *vector = IoSlice::new(chunk);
        });
        filled.count()
    }

    /// # Panics
    /// If `n` is more than [`len`](LinkBuffer::len), as the trait demands.
    fn advance(&mut self, n: usize) {
        assert!(self.skip(n).is_ok(), "advance({n}) beyond the {} readable bytes", self.len());
    }

    /// Not copied, unless the bytes cross slices of different blocks.
    ///
    /// # Panics
    /// If `n` is more than [`len`](LinkBuffer::len), as the trait demands, or if there is no memory for the copy.
    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        match self.next(n) {
            Ok(slice) => slice.into(),
            Err(error) => panic!("copy_to_bytes: {error}"),
        }
    }
}

/// Bytes put in are reserved, like those of [`LinkBuffer::write`], until [`LinkBuffer::flush`].
///
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
        let room = self.recv.tail().map_or(0, crate::memory::Tail::remaining);
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
        self.consume_front(n.min(self.len()));
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

macro_rules! from_owned {
    ($($owned:ty),*) => {$(
        /// A readable buffer of these bytes, not copied.
        impl From<$owned> for LinkBuffer {
            fn from(bytes: $owned) -> LinkBuffer {
                let mut buffer = LinkBuffer::new();
                buffer.adopt(bytes);
                buffer
            }
        }
    )*};
}

from_owned!(Slice, Bytes, BytesMut, Vec<u8>, String, &'static [u8], &'static str);

/// All readable bytes in one piece: not copied if they are one already. Reserved bytes are dropped.
///
/// # Panics
/// If they must be copied and there is no memory for it; [`LinkBuffer::next`] gives an error instead.
impl From<LinkBuffer> for Slice {
    fn from(mut buffer: LinkBuffer) -> Slice {
        match buffer.next(buffer.len()) {
            Ok(slice) => slice,
            Err(error) => panic!("into one piece: {error}"),
        }
    }
}

/// All readable bytes in one piece: not copied if they are one already. Reserved bytes are dropped.
///
/// # Panics
/// If they must be copied and there is no memory for it; [`LinkBuffer::next`] gives an error instead.
impl From<LinkBuffer> for Bytes {
    fn from(buffer: LinkBuffer) -> Bytes {
        Slice::from(buffer).into()
    }
}

/// All readable bytes in one piece. Copied, unless they are one `Bytes` or `BytesMut` from outside that nobody else
/// refers to: a block cannot become a `BytesMut`. Reserved bytes are dropped.
impl From<LinkBuffer> for BytesMut {
    fn from(mut buffer: LinkBuffer) -> BytesMut {
        let len = buffer.len();
        if buffer.first_chunk().len() == len {
            return Slice::from(buffer).into();
        }
        let mut bytes = BytesMut::with_capacity(len);
        while let Some(slice) = buffer.next_chunk(len) {
            bytes.extend_from_slice(&slice);
        }
        bytes
    }
}
