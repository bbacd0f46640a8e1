//! The read end of a LinkBuffer.

use std::iter::FusedIterator;

use memchr::memmem;

use super::chain::{Chain, Iter as ChainIter};
use super::link_buffer::LinkBuffer;
use crate::error::Error;
use crate::memory::Slice;

/// Spare room behind a copy that has grown before, in bytes.
const GATHER_SPARE_MAX: usize = 1 << 20;

impl LinkBuffer {
    /// Bytes that can be read. O(1).
    #[inline]
    pub fn len(&self) -> usize {
        self.chain.len() - self.unflushed
    }

    /// Whether nothing can be read. O(1).
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next `n` bytes, contiguous and owned. No copy, unless they cross slices of different blocks.
    ///
    /// ```
    /// # use duopoll_core::{Error, LinkBuffer};
    /// let mut buffer = LinkBuffer::from(&b"\0\x05hello"[..]);
    /// let len = buffer.next(2)?;
    /// let text = buffer.next(usize::from(len[1]))?;
    /// assert_eq!(text, b"hello");
    /// assert_eq!(buffer.next(1), Err(Error::NotEnough { needed: 1, available: 0 }));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer are readable; [`Error::OutOfMemory`] if they must be copied and there is no
    /// block. Nothing is consumed then.
    #[inline]
    pub fn next(&mut self, n: usize) -> Result<Slice, Error> {
        self.contiguous(n)?;
        let slice = match self.chain.first() {
            Some(first) if n > 0 => {
                if n < first.len() {
                    self.chain.split_first(n)
                } else {
                    self.chain.pop()
                }
            }
            _ => None,
        };
        self.consumed();
        Ok(slice.unwrap_or_default())
    }

    /// The next `n` bytes, contiguous, without consuming them. If they cross slices they are copied together once;
    /// a longer peek later copies only what it adds, and `next` of them copies nothing.
    ///
    /// # Errors
    /// As for [`next`](LinkBuffer::next).
    #[inline]
    pub fn peek(&mut self, n: usize) -> Result<&[u8], Error> {
        self.contiguous(n)?;
        match self.chain.first() {
            Some(first) if n > 0 => Ok(&first[..n]),
            _ => Ok(&[]),
        }
    }

    /// The readable bytes up to the first slice's end: what can be looked at without copying. Empty only if
    /// nothing is readable.
    #[inline]
    pub fn first_chunk(&self) -> &[u8] {
        self.chain.first().map_or(&[], |first| &first[..first.len().min(self.len())])
    }

    /// Drops the next `n` bytes.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer are readable; nothing is consumed then.
    #[inline]
    pub fn skip(&mut self, n: usize) -> Result<(), Error> {
        self.require(n)?;
        self.consume_front(n);
        Ok(())
    }

    /// The next bytes through the first `delimiter`, which is included; nothing if it has not come yet. Searching
    /// again costs the whole search; [`find`](LinkBuffer::find) resumes where the last one ended.
    pub fn until(&mut self, delimiter: u8) -> Option<Slice> {
        let at = self.find(delimiter, 0)?;
        self.next(at + 1).ok()
    }

    /// The offset of the first `byte` at or behind `from`, among the readable bytes.
    pub fn find(&self, byte: u8, from: usize) -> Option<usize> {
        let mut offset = 0;
        for chunk in self.chunks() {
            let end = offset + chunk.len();
            if end > from {
                let skip = from.saturating_sub(offset);
                if let Some(at) = memchr::memchr(byte, &chunk[skip..]) {
                    return Some(offset + skip + at);
                }
            }
            offset = end;
        }
        None
    }

    /// The offset of the first occurrence of `pattern` at or behind `from`, among the readable bytes, wherever it
    /// crosses slices. An empty pattern is found at `from`, if that is within the buffer. For short patterns:
    /// O(bytes searched), and the square of the pattern's length for each slice it may cross into.
    ///
    /// ```
    /// # use duopoll_core::LinkBuffer;
    /// let mut buffer = LinkBuffer::new();
    /// buffer.push("Host: example.org\r\n\r");
    /// buffer.push("\nbody");
    /// buffer.flush();
    /// assert_eq!(buffer.find_pattern(b"\r\n\r\n", 0), Some(17));
    /// ```
    pub fn find_pattern(&self, pattern: &[u8], from: usize) -> Option<usize> {
        if pattern.is_empty() {
            return (from <= self.len()).then_some(from);
        }
        let finder = memmem::Finder::new(pattern);
        let mut chunks = self.chunks();
        let mut offset = 0;
        while let Some(chunk) = chunks.next() {
            let end = offset + chunk.len();
            if end > from {
                let skip = from.saturating_sub(offset);
                if let Some(at) = finder.find(&chunk[skip..]) {
                    return Some(offset + skip + at);
                }
                // It may begin in the last bytes of this chunk, and end in a later one.
                let crossing = skip.max(chunk.len().saturating_sub(pattern.len() - 1));
                for at in crossing..chunk.len() {
                    let (front, back) = pattern.split_at(chunk.len() - at);
                    if chunk[at..] == *front && begin_with(chunks.clone(), back) {
                        return Some(offset + at);
                    }
                }
            }
            offset = end;
        }
        None
    }

    /// The next byte. For wider numbers of either endianness see the methods of [`bytes::Buf`].
    ///
    /// # Errors
    /// [`Error::NotEnough`] if there is none.
    #[inline]
    pub fn read_u8(&mut self) -> Result<u8, Error> {
        let byte = self.first_chunk().first().copied();
        self.consume_front(usize::from(byte.is_some()));
        byte.ok_or(Error::NotEnough { needed: 1, available: 0 })
    }

    /// The next `n` bytes, copied into memory of their own.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer are readable, [`Error::OutOfMemory`] if there is no memory for the copy;
    /// nothing is consumed then.
    pub fn read_bytes(&mut self, n: usize) -> Result<Vec<u8>, Error> {
        let bytes = self.copied(n)?;
        self.consume_front(n);
        Ok(bytes)
    }

    /// The next `n` bytes, copied, as text.
    ///
    /// # Errors
    /// As for [`read_bytes`](LinkBuffer::read_bytes), and [`Error::NotUtf8`]; nothing is consumed then.
    pub fn read_string(&mut self, n: usize) -> Result<String, Error> {
        let text = String::from_utf8(self.copied(n)?).map_err(|_| Error::NotUtf8)?;
        self.consume_front(n);
        Ok(text)
    }

    fn copied(&self, n: usize) -> Result<Vec<u8>, Error> {
        self.require(n)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { bytes: n })?;
        for chunk in self.chunks() {
            let take = chunk.len().min(n - bytes.len());
            bytes.extend_from_slice(&chunk[..take]);
            if bytes.len() == n {
                break;
            }
        }
        Ok(bytes)
    }

    /// Copies the next bytes into `target` and consumes them; returns how many, fewer than `target.len()` only if
    /// fewer are readable.
    pub fn copy_to(&mut self, target: &mut [u8]) -> usize {
        let copied = self.peek_to(target);
        self.consume_front(copied);
        copied
    }

    /// Copies the next bytes into `target` without consuming them; returns how many.
    pub fn peek_to(&self, target: &mut [u8]) -> usize {
        let mut copied = 0;
        for chunk in self.chunks() {
            let n = chunk.len().min(target.len() - copied);
            target[copied..copied + n].copy_from_slice(&chunk[..n]);
            copied += n;
            if copied == target.len() {
                break;
            }
        }
        copied
    }

    /// The next `n` bytes as a buffer of their own, on the same pool. No copy.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer are readable; nothing is consumed then.
    pub fn split_to(&mut self, n: usize) -> Result<LinkBuffer, Error> {
        self.require(n)?;
        let mut front = LinkBuffer::with_pool(self.pool.clone());
        front.chain = self.chain.split_to(n);
        self.consumed();
        Ok(front)
    }

    /// The readable bytes, slice by slice, not consumed.
    pub fn chunks(&self) -> Chunks<'_> {
        Chunks { slices: self.chain.iter(), left: self.len() }
    }

    /// Takes the readable bytes slice by slice, without copying: the next slice as it lies in memory, at most
    /// `max_bytes` of it.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Option<Slice> {
        let n = self.first_chunk().len().min(max_bytes);
        if n == 0 { None } else { self.next(n).ok() }
    }

    /// Drops the next `n` bytes, which are readable.
    #[inline]
    pub(super) fn consume_front(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.chain.advance(n);
        self.consumed();
    }

    /// Gives up the block of an earlier peek, once its bytes are taken: an idle buffer must not hold on to it.
    #[inline]
    pub(super) fn consumed(&mut self) {
        if self.peeked.is_some() {
            self.settle_peeked();
        }
    }

    #[cold]
    fn settle_peeked(&mut self) {
        let first = self.chain.first();
        self.peeked =
            self.peeked.take().filter(|tail| first.is_some_and(|first| tail.touches(first)));
    }

    #[inline]
    fn require(&self, n: usize) -> Result<(), Error> {
        let available = self.len();
        if n > available { Err(Error::NotEnough { needed: n, available }) } else { Ok(()) }
    }

    /// Makes the next `n` bytes lie in the first slice.
    #[inline]
    fn contiguous(&mut self, n: usize) -> Result<(), Error> {
        self.require(n)?;
        match self.chain.first() {
            Some(first) if first.len() < n => self.gather(n),
            _ => Ok(()),
        }
    }

    /// Copies the next `n` bytes into one slice. A first slice that an earlier call made is only extended.
    #[cold]
    fn gather(&mut self, n: usize) -> Result<(), Error> {
        let first = self.chain.first().map_or(0, |first| first.len());
        let extends = self.peeked.as_ref().is_some_and(|peeked| {
            peeked.remaining() >= n - first
                && self.chain.first().is_some_and(|first| peeked.touches(first))
        });
        let mut tail = match self.peeked.take() {
            Some(peeked) if extends => peeked,
            // Room for as much again, so that peeks that grow step by step copy a byte about twice.
            earlier => self.pool.allocate(if earlier.is_some() {
                n + n.min(GATHER_SPARE_MAX)
            } else {
                n
            })?,
        };
        let mut gathered = Chain::new();
        let mut left = n;
        if extends {
            if let Some(slice) = self.chain.pop() {
                left -= slice.len();
                gathered.push(slice);
            }
        }
        while let Some(slice) = if left > 0 { self.chain.first() } else { None } {
            let take = slice.len().min(left);
            tail.fill(&slice[..take]);
            // SAFETY: `fill` initialised `take` bytes, since the tail has room for all that is left.
            unsafe { gathered.push_committed(&mut tail, take) };
            self.chain.advance(take);
            left -= take;
        }
        if let Some(slice) = gathered.pop() {
            self.chain.push_front(slice);
        }
        self.peeked = Some(tail);
        Ok(())
    }
}

/// The readable bytes of a [`LinkBuffer`], slice by slice; see [`LinkBuffer::chunks`].
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    slices: ChainIter<'a>,
    left: usize,
}

impl<'a> Iterator for Chunks<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let slice = self.slices.next()?;
        // The last readable slice may go on with reserved bytes.
        let n = slice.len().min(self.left);
        self.left -= n;
        Some(&slice[..n])
    }
}

impl FusedIterator for Chunks<'_> {}

/// Whether `pattern` comes first in what the chunks hold.
fn begin_with(chunks: Chunks<'_>, mut pattern: &[u8]) -> bool {
    for chunk in chunks {
        let n = chunk.len().min(pattern.len());
        if chunk[..n] != pattern[..n] {
            return false;
        }
        pattern = &pattern[n..];
        if pattern.is_empty() {
            return true;
        }
    }
    pattern.is_empty()
}
