//! A LinkBuffer in front of any `std::io` reader or writer.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::mem::MaybeUninit;

use super::link_buffer::LinkBuffer;
use crate::buffer::BufferSeam;
use crate::error::Error;
use crate::memory::{Slice, Tail};

/// The first block that is read into, in bytes; also the smallest.
const READ_BYTES_MIN: usize = 4 << 10;
/// The largest block that is read into, in bytes.
const READ_BYTES_MAX: usize = 256 << 10;
/// A block with less room than this is given up, so that a nearly full one never costs a short read, in bytes.
const ROOM_BYTES_MIN: usize = 512;
/// Vectors offered to one write.
const VECTORS_MAX: usize = 64;

/// A reader whose bytes are taken out as slices: like `BufReader`, but what it gives is owned, and not copied
/// unless it crosses blocks.
///
/// Each method reads until it has what it needs. A block is read into in place, and zeroed once before, since a
/// `Read` may look at what it is given. Blocks grow while reads fill them.
///
/// ```
/// # extern crate duopoll_core as duopoll;
/// use duopoll::LinkReader;
///
/// let mut reader = LinkReader::new(&b"\x03abc rest"[..]);
/// let len = reader.read_u8()?;
/// assert_eq!(reader.next(len.into())?, b"abc");
/// assert!(reader.next(100).is_err());
/// assert_eq!(reader.buffer().len(), 5);       // nothing is lost
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// The error of the reader, as it is, except that an interrupted read is repeated;
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the stream ends first. What was read stays in the buffer, and
/// nothing of it is consumed, so the call can be repeated.
#[derive(Debug)]
pub struct LinkReader<R> {
    inner: R,
    buffer: LinkBuffer,
    room: Option<Room>,
    read_bytes: usize,
}

/// A tail all of whose bytes are initialised: only this type writes to it, and it only writes bytes.
#[derive(Debug)]
struct Room(Tail);

impl Room {
    fn new(mut tail: Tail) -> Room {
        tail.spare_mut().fill(MaybeUninit::new(0));
        Room(tail)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let spare: *mut [MaybeUninit<u8>] = self.0.spare_mut();
        // SAFETY: all of the tail was initialised by `new`, and nobody wrote anything but bytes to it since.
        unsafe { &mut *(spare as *mut [u8]) }
    }

    fn take(&mut self, n: usize) -> Slice {
        let n = n.min(self.0.remaining());
        // SAFETY: initialised as above; the borrow that could write to them is over.
        unsafe { self.0.commit(n) }
    }
}

impl<R> LinkReader<R> {
    /// A reader with an empty buffer on the [global pool](crate::Pool::global). Allocates nothing.
    pub fn new(inner: R) -> LinkReader<R> {
        LinkReader::with_buffer(inner, LinkBuffer::new())
    }

    /// A reader whose first bytes are those in `buffer`, and whose blocks come from its pool.
    pub fn with_buffer(inner: R, buffer: LinkBuffer) -> LinkReader<R> {
        LinkReader { inner, buffer, room: None, read_bytes: READ_BYTES_MIN }
    }

    /// What was read and not consumed.
    pub fn buffer(&self) -> &LinkBuffer {
        &self.buffer
    }

    /// As [`buffer`](LinkReader::buffer), to take from it directly what is there.
    pub fn buffer_mut(&mut self) -> &mut LinkBuffer {
        &mut self.buffer
    }

    /// The reader underneath.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The reader underneath. What is read from it directly is missing here.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The reader underneath, and what was read from it and not consumed.
    pub fn into_parts(self) -> (R, LinkBuffer) {
        (self.inner, self.buffer)
    }
}

impl<R: Read> LinkReader<R> {
    /// Reads once; returns how many bytes came, 0 at the end of the stream.
    ///
    /// # Errors
    /// See [`LinkReader`].
    pub fn read_more(&mut self) -> io::Result<usize> {
        let room = match &mut self.room {
            Some(room) if room.0.remaining() >= ROOM_BYTES_MIN => room,
            none => none.insert(Room::new(self.buffer.pool().allocate(self.read_bytes)?)),
        };
        let target = room.bytes_mut();
        let lent = target.len();
        let n = loop {
            match self.inner.read(target) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if n > lent {
            return Err(io::Error::other(format!(
                "the reader claims {n} bytes, {lent} were asked for"
            )));
        }
        if n == lent {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        } else if n < self.read_bytes / 4 {
            self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
        }
        let slice = room.take(n);
        self.buffer.adopt(slice);
        if n == 0 {
            // The end, or no news: nothing is held for it.
            self.room = None;
        }
        Ok(n)
    }

    /// Reads until `n` bytes can be taken.
    ///
    /// # Errors
    /// See [`LinkReader`].
    pub fn fill(&mut self, n: usize) -> io::Result<()> {
        while self.buffer.len() < n {
            if self.read_more()? == 0 {
                return Err(Error::NotEnough { needed: n, available: self.buffer.len() }.into());
            }
        }
        Ok(())
    }

    /// The next `n` bytes; see [`LinkBuffer::next`].
    ///
    /// # Errors
    /// See [`LinkReader`].
    pub fn next(&mut self, n: usize) -> io::Result<Slice> {
        self.fill(n)?;
        Ok(self.buffer.next(n)?)
    }

    /// The next `n` bytes, not consumed; see [`LinkBuffer::peek`].
    ///
    /// # Errors
    /// See [`LinkReader`].
    pub fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        self.fill(n)?;
        Ok(self.buffer.peek(n)?)
    }

    /// Drops the next `n` bytes.
    ///
    /// # Errors
    /// See [`LinkReader`].
    pub fn skip(&mut self, n: usize) -> io::Result<()> {
        self.fill(n)?;
        Ok(self.buffer.skip(n)?)
    }

    /// The next bytes through `delimiter`, which is included.
    ///
    /// # Errors
    /// See [`LinkReader`]; [`InvalidData`](io::ErrorKind::InvalidData) if the delimiter is not among the next
    /// `max_bytes`. Nothing is consumed then.
    pub fn until(&mut self, delimiter: u8, max_bytes: usize) -> io::Result<Slice> {
        let mut searched = 0;
        loop {
            match self.buffer.find(delimiter, searched) {
                Some(at) if at < max_bytes => return Ok(self.buffer.next(at + 1)?),
                _ => searched = self.buffer.len(),
            }
            if searched >= max_bytes {
                let message = format!("no delimiter within {max_bytes} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            self.fill(searched + 1)?;
        }
    }

    /// The next byte.
    ///
    /// # Errors
    /// See [`LinkReader`].
    pub fn read_u8(&mut self) -> io::Result<u8> {
        self.fill(1)?;
        Ok(self.buffer.read_u8()?)
    }

    /// The next `n` bytes, copied.
    ///
    /// # Errors
    /// See [`LinkReader`].
    pub fn read_bytes(&mut self, n: usize) -> io::Result<Vec<u8>> {
        self.fill(n)?;
        Ok(self.buffer.read_bytes(n)?)
    }

    /// The next `n` bytes, copied, as text.
    ///
    /// # Errors
    /// See [`LinkReader`]; [`InvalidData`](io::ErrorKind::InvalidData) if it is not UTF-8. Nothing is consumed then.
    pub fn read_string(&mut self, n: usize) -> io::Result<String> {
        self.fill(n)?;
        Ok(self.buffer.read_string(n)?)
    }

    /// The next `n` bytes as a buffer of their own, not copied.
    ///
    /// # Errors
    /// See [`LinkReader`].
    pub fn split_to(&mut self, n: usize) -> io::Result<LinkBuffer> {
        self.fill(n)?;
        Ok(self.buffer.split_to(n)?)
    }
}

/// Copies out of the buffer; a target at least as large as a block is read into directly when the buffer is empty.
impl<R: Read> Read for LinkReader<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && !target.is_empty() {
            if target.len() >= self.read_bytes {
                return self.inner.read(target);
            }
            self.read_more()?;
        }
        Ok(self.buffer.copy_to(target))
    }
}

impl<R: Read> BufRead for LinkReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.buffer.is_empty() {
            self.read_more()?;
        }
        Ok(self.buffer.first_chunk())
    }

    fn consume(&mut self, n: usize) {
        self.buffer.consume(n);
    }
}

/// A writer that collects pieces, copied or owned, and writes them out together, without joining them.
///
/// Pieces are staged in the [`buffer`](LinkWriter::buffer_mut), which has no bound of its own, until
/// [`flush`](Write::flush) writes them out. Dropping the writer writes nothing.
///
/// ```
/// use std::io::Write;
/// # extern crate duopoll_core as duopoll;
/// use duopoll::LinkWriter;
///
/// let mut writer = LinkWriter::new(Vec::new());
/// writer.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;     // copied
/// writer.buffer_mut().push("the body");              // not copied
/// writer.flush()?;
/// assert_eq!(writer.get_ref(), b"HTTP/1.1 200 OK\r\n\r\nthe body");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// The error of the writer, as it is, except that an interrupted write is repeated;
/// [`WriteZero`](io::ErrorKind::WriteZero) if it takes no more. What was not written stays in the buffer, so that the
/// flush can be repeated.
#[derive(Debug)]
pub struct LinkWriter<W> {
    inner: W,
    buffer: LinkBuffer,
}

impl<W> LinkWriter<W> {
    /// A writer with an empty buffer on the [global pool](crate::Pool::global). Allocates nothing.
    pub fn new(inner: W) -> LinkWriter<W> {
        LinkWriter::with_buffer(inner, LinkBuffer::new())
    }

    /// A writer that begins with what is in `buffer`, and takes its blocks from its pool.
    pub fn with_buffer(inner: W, buffer: LinkBuffer) -> LinkWriter<W> {
        LinkWriter { inner, buffer }
    }

    /// What was not written out.
    pub fn buffer(&self) -> &LinkBuffer {
        &self.buffer
    }

    /// What was not written out, to put pieces in: see [`LinkBuffer`].
    pub fn buffer_mut(&mut self) -> &mut LinkBuffer {
        &mut self.buffer
    }

    /// The writer underneath.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// The writer underneath. What is written to it directly overtakes what is staged.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// The writer underneath, and what was not written to it.
    pub fn into_parts(self) -> (W, LinkBuffer) {
        (self.inner, self.buffer)
    }
}

/// Bytes written are copied and staged; `flush` writes out all that is staged, and flushes the writer underneath.
impl<W: Write> Write for LinkWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.buffer.flush();
        while !self.buffer.is_empty() {
            let mut vectors = [IoSlice::new(&[]); VECTORS_MAX];
            let count = bytes::Buf::chunks_vectored(&self.buffer, &mut vectors);
            let offered: usize = vectors[..count].iter().map(|vector| vector.len()).sum();
            let n = match self.inner.write_vectored(&vectors[..count]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            if n > offered {
                return Err(io::Error::other(format!("the writer claims {n} bytes of {offered}")));
            }
            self.buffer.skip(n)?;
        }
        self.inner.flush()
    }
}
