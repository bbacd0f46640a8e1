//! The read end of a LinkBuffer.

use super::LinkBuffer;
use super::chain::Chain;
use crate::error::Error;
use crate::memory::Slice;

/// Spare room behind a copy that has grown before, in bytes.
const GATHER_SPARE_MAX: usize = 1 << 20;

impl LinkBuffer {
    /// Bytes that can be read. O(1).
    pub fn len(&self) -> usize {
        self.chain.len() - self.unflushed
    }

    /// Whether nothing can be read. O(1).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next `n` bytes, contiguous and owned. No copy, unless they cross slices of different blocks.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer are readable; [`Error::OutOfMemory`] if they must be copied and there is no
    /// block. Nothing is consumed then.
    pub fn next(&mut self, n: usize) -> Result<Slice, Error> {
        self.contiguous(n)?;
        let whole = self.chain.first().is_some_and(|first| first.len() == n);
        let slice = if n == 0 {
            None
        } else if whole {
            self.chain.pop()
        } else {
            self.chain.split_first(n)
        };
        Ok(slice.unwrap_or_default())
    }

    /// The next `n` bytes, contiguous, without consuming them. If they cross slices they are copied together once;
    /// a longer peek later copies only what it adds, and `next` of them copies nothing.
    ///
    /// # Errors
    /// As for [`next`](LinkBuffer::next).
    pub fn peek(&mut self, n: usize) -> Result<&[u8], Error> {
        self.contiguous(n)?;
        match self.chain.first() {
            Some(first) if n > 0 => Ok(&first[..n]),
            _ => Ok(&[]),
        }
    }

    /// The readable bytes up to the first slice's end: what can be looked at without copying. Empty only if
    /// nothing is readable.
    pub fn first_chunk(&self) -> &[u8] {
        self.chain.first().map_or(&[], |first| &first[..first.len().min(self.len())])
    }

    /// Drops the next `n` bytes.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer are readable; nothing is consumed then.
    pub fn skip(&mut self, n: usize) -> Result<(), Error> {
        self.require(n)?;
        self.chain.advance(n);
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
    /// crosses slices. An empty pattern is found at `from`, if that is within the buffer.
    pub fn find_pattern(&self, pattern: &[u8], from: usize) -> Option<usize> {
        let Some(&first) = pattern.first() else {
            return (from <= self.len()).then_some(from);
        };
        let last_start = self.len().checked_sub(pattern.len())?;
        let mut candidate = from;
        while candidate <= last_start {
            candidate = self.find(first, candidate)?;
            if candidate > last_start {
                return None;
            }
            if self.matches_at(candidate, pattern) {
                return Some(candidate);
            }
            candidate += 1;
        }
        None
    }

    fn matches_at(&self, at: usize, mut pattern: &[u8]) -> bool {
        let mut skip = at;
        for chunk in self.chunks() {
            if skip >= chunk.len() {
                skip -= chunk.len();
                continue;
            }
            let chunk = &chunk[skip..];
            skip = 0;
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

    /// The next byte.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if there is none.
    pub fn read_u8(&mut self) -> Result<u8, Error> {
        self.require(1)?;
        let byte = self.chain.first().and_then(|first| first.first().copied());
        self.chain.advance(1);
        byte.ok_or(Error::NotEnough { needed: 1, available: 0 })
    }

    /// The next `n` bytes, copied into memory of their own.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer are readable, [`Error::OutOfMemory`] if there is no memory for the copy;
    /// nothing is consumed then.
    pub fn read_bytes(&mut self, n: usize) -> Result<Vec<u8>, Error> {
        self.require(n)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { bytes: n })?;
        let mut left = n;
        for chunk in self.chunks() {
            let take = chunk.len().min(left);
            bytes.extend_from_slice(&chunk[..take]);
            left -= take;
            if left == 0 {
                break;
            }
        }
        self.chain.advance(n);
        Ok(bytes)
    }

    /// The next `n` bytes, copied, as text.
    ///
    /// # Errors
    /// As for [`read_bytes`](LinkBuffer::read_bytes), and [`Error::NotUtf8`]; nothing is consumed then.
    pub fn read_string(&mut self, n: usize) -> Result<String, Error> {
        let text = std::str::from_utf8(self.peek(n)?).map_err(|_| Error::NotUtf8)?.to_owned();
        self.chain.advance(n);
        Ok(text)
    }

    /// Copies the next bytes into `target` and consumes them; returns how many, fewer than `target.len()` only if
    /// fewer are readable.
    pub fn copy_to(&mut self, target: &mut [u8]) -> usize {
        let copied = self.peek_to(target);
        self.chain.advance(copied);
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
        Ok(front)
    }

    /// The readable bytes, slice by slice, not consumed.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.len();
        self.chain.iter().map_while(move |slice| {
            let n = slice.len().min(left);
            left -= n;
            (n > 0).then(|| &slice[..n])
        })
    }

    /// Takes the readable bytes slice by slice, without copying: the next slice as it lies in memory, at most
    /// `max_bytes` of it.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Option<Slice> {
        let n = self.first_chunk().len().min(max_bytes);
        if n == 0 { None } else { self.next(n).ok() }
    }

    fn require(&self, n: usize) -> Result<(), Error> {
        let available = self.len();
        if n > available { Err(Error::NotEnough { needed: n, available }) } else { Ok(()) }
    }

    /// Makes the next `n` bytes lie in the first slice.
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
