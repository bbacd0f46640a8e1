//! The write end of a LinkBuffer.

use std::mem::MaybeUninit;

use super::link_buffer::LinkBuffer;
use crate::buffer::BufferSeam;
use crate::error::Error;
use crate::memory::{Slice, Tail};

/// Blocks grow with what the buffer holds up to this, in bytes; a larger piece gets a block of its own size.
const BLOCK_BYTES_MAX: usize = 64 << 10;

impl LinkBuffer {
    /// Bytes that were written and not flushed. O(1).
    #[inline]
    pub fn reserved_len(&self) -> usize {
        self.unflushed
    }

    /// Copies `bytes` to the end. They are readable after [`flush`](LinkBuffer::flush).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; nothing is written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.promised = 0;
        let room = self.room_for(bytes.len());
        let (front, rest) = bytes.split_at(bytes.len().min(room));
        // Allocated before anything is copied, so that a refusal leaves the buffer unchanged.
        let next = if rest.is_empty() { None } else { Some(self.block(rest.len())?) };
        self.copy_in(front);
        if let Some(next) = next {
            *self.recv.tail_mut() = Some(next);
            self.copy_in(rest);
        }
        Ok(())
    }

    #[inline]
    fn copy_in(&mut self, bytes: &[u8]) {
        if let Some(tail) = self.recv.tail_mut() {
            let n = tail.fill(bytes);
            debug_assert_eq!(n, bytes.len());
            // SAFETY: `fill` initialised n bytes.
            unsafe { self.chain.push_committed(tail, n) };
            self.unflushed += n;
        }
    }

    /// Puts owned bytes at the end, without copying. They are readable after [`flush`](LinkBuffer::flush).
    ///
    /// Takes a [`Slice`] and whatever becomes one: `Bytes`, `Vec<u8>`, `String`, `&'static [u8]`, `&'static str`.
    #[inline]
    pub fn push(&mut self, slice: impl Into<Slice>) {
        let slice = slice.into();
        self.promised = 0;
        self.unflushed += slice.len();
        self.chain.push(slice);
    }

    /// Room for exactly `n` contiguous bytes at the end, not initialised, in a block of its own if the current one
    /// has not as much left. [`commit`](LinkBuffer::commit) takes the
    /// first of them in; what is not committed is as if it had never been reserved. Any other call that writes
    /// ends the reservation.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the buffer is unchanged then.
    #[inline]
    pub fn reserve(&mut self, n: usize) -> Result<&mut [MaybeUninit<u8>], Error> {
        self.promised = 0;
        if n == 0 {
            return Ok(&mut []);
        }
        if self.room_for(n) < n {
            let block = self.block(n)?;
            *self.recv.tail_mut() = Some(block);
        }
        self.promised = n;
        match self.recv.tail_mut() {
            Some(tail) => Ok(&mut tail.spare_mut()[..n]),
            None => Ok(&mut []),
        }
    }

    /// Takes in the first `n` bytes of the room last reserved. They are readable after
    /// [`flush`](LinkBuffer::flush).
    ///
    /// # Safety
    /// The first `n` bytes of what [`reserve`](LinkBuffer::reserve) gave are initialised.
    ///
    /// # Errors
    /// [`Error::NotReserved`] if `n` is more than was reserved; the buffer is unchanged then.
    #[inline]
    pub unsafe fn commit(&mut self, n: usize) -> Result<(), Error> {
        if n > self.promised {
            return Err(Error::NotReserved { committed: n, reserved: self.promised });
        }
        self.promised -= n;
        if let Some(tail) = self.recv.tail_mut() {
            // SAFETY: promised by the caller, and n does not exceed what the tail had room for.
            unsafe { self.chain.push_committed(tail, n) };
            self.unflushed += n;
        }
        Ok(())
    }

    /// As [`reserve`](LinkBuffer::reserve) and [`commit`](LinkBuffer::commit), for encoders that want memory that is initialised:
    /// `fill` gets `n` bytes of zeros and says how many of them it has written, which are taken in. Returns how many.
    ///
    /// ```
    /// # use duopoll_core::LinkBuffer;
    /// let mut buffer = LinkBuffer::new();
    /// buffer.write_with(8, |room| {
    ///     room[..2].copy_from_slice(b"ok");
    ///     2
    /// })?;
    /// buffer.flush();
    /// assert_eq!(buffer.next(2)?, b"ok");
    /// # Ok::<(), duopoll_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the buffer is unchanged then.
    pub fn write_with(
        &mut self,
        n: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, Error> {
        let room = self.reserve(n)?;
        room.fill(MaybeUninit::new(0));
        // SAFETY: every byte is initialised.
        let room = unsafe { &mut *(std::ptr::from_mut(room) as *mut [u8]) };
        let written = fill(room).min(n);
        // SAFETY: as above.
        unsafe { self.commit(written)? };
        Ok(written)
    }

    /// Inserts an owned piece before the last `n` reserved bytes, without copying either. For a serialiser that
    /// has written the fields behind a large one already.
    ///
    /// ```
    /// # use duopoll_core::LinkBuffer;
    /// let mut buffer = LinkBuffer::new();
    /// buffer.write(b"<></>")?;
    /// buffer.insert(3, "body")?;
    /// buffer.flush();
    /// assert_eq!(buffer.next(9)?, b"<>body</>");
    /// # Ok::<(), duopoll_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer than `n` bytes are reserved; the buffer is unchanged then.
    pub fn insert(&mut self, n: usize, slice: impl Into<Slice>) -> Result<(), Error> {
        if n > self.unflushed {
            return Err(Error::NotEnough { needed: n, available: self.unflushed });
        }
        let slice = slice.into();
        self.promised = 0;
        self.unflushed += slice.len();
        let mut behind = self.chain.split_off(self.chain.len() - n);
        self.chain.push(slice);
        self.chain.append(&mut behind);
        Ok(())
    }

    /// Keeps the first `n` reserved bytes and drops the others.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if fewer than `n` bytes are reserved; the buffer is unchanged then.
    pub fn truncate_reserved(&mut self, n: usize) -> Result<(), Error> {
        if n > self.unflushed {
            return Err(Error::NotEnough { needed: n, available: self.unflushed });
        }
        self.promised = 0;
        self.chain.split_off(self.len() + n);
        self.unflushed = n;
        Ok(())
    }

    /// Moves all of `other`, readable and reserved, to the end of this buffer, where it is reserved. `other` is
    /// empty then, and can be used on. O(1).
    pub fn append(&mut self, other: &mut LinkBuffer) {
        self.promised = 0;
        self.unflushed += other.chain.len();
        other.drain_into(&mut self.chain);
    }

    /// Makes everything that was written readable. O(1). Doing it twice is harmless.
    #[inline]
    pub fn flush(&mut self) {
        self.unflushed = 0;
    }

    /// How much room the tail has. If that is less than `n`, but all of its bytes are gone, it is used anew.
    #[inline]
    fn room_for(&mut self, n: usize) -> usize {
        let Some(tail) = self.recv.tail_mut() else { return 0 };
        if tail.remaining() < n {
            tail.rewind();
        }
        tail.remaining()
    }

    /// A block for `n` bytes more, larger the more the buffer holds: many bytes in few nodes.
    fn block(&self, n: usize) -> Result<Tail, Error> {
        let node_bytes = self.pool.config().node_bytes;
        self.pool.allocate(n.max(self.chain.len().min(BLOCK_BYTES_MAX)).max(node_bytes))
    }
}
