//! The two ends of a buffer as memory, for engines and adapters.

use libc::iovec;

use super::chain::Chain;
use super::link_buffer::LinkBuffer;
use crate::error::Error;
use crate::memory::{Slice, Tail};

/// What whoever moves the bytes of a [`LinkBuffer`] does with it, below those who read and write it.
pub trait BufferSeam {
    /// Describes where bytes from outside may be written: up to two vectors, sized by what arrived before. They
    /// stay valid until the next call that changes the buffer.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no block to be had.
    fn lend_writable(&mut self, vectors: &mut [iovec; 2]) -> Result<usize, Error>;

    /// Takes the first `n` bytes that were written to the vectors last lent. They are readable at once, and come
    /// behind reserved bytes if there are any, which are flushed by this.
    ///
    /// # Safety
    /// - `n` is at most the total of the vectors that [`lend_writable`](BufferSeam::lend_writable) gave last, and
    ///   the buffer was not changed since.
    /// - The first `n` bytes of the vectors are initialised, and nobody writes to them any more.
    unsafe fn commit_lent(&mut self, n: usize);

    /// Describes the first readable bytes: at most `vectors.len()` vectors, at most [`IO_VECTORS_MAX`](crate::IO_VECTORS_MAX), and at most
    /// [`IO_BYTES_MAX`](crate::IO_BYTES_MAX) bytes in all. Returns how many vectors and how many bytes; no vector is empty. They stay
    /// valid until the buffer is changed; [`skip`](LinkBuffer::skip) what was used. O(vectors).
    fn lend_readable(&self, vectors: &mut [iovec]) -> (usize, usize);

    /// Takes a slice that was filled elsewhere, readable at once. Reserved bytes come before it, and are flushed
    /// by this. O(1), no copy.
    fn adopt(&mut self, slice: impl Into<Slice>);

    /// Moves a whole chain to the end, readable at once. O(1).
    fn adopt_chain(&mut self, chain: &mut Chain);

    /// Moves every byte, readable or reserved, to the end of `chain`. O(1).
    fn drain_into(&mut self, chain: &mut Chain);

    /// The block that is being written, to be taken away or put back: connections share one among many.
    fn tail_mut(&mut self) -> &mut Option<Tail>;
}

impl BufferSeam for LinkBuffer {
    fn lend_writable(&mut self, vectors: &mut [iovec; 2]) -> Result<usize, Error> {
        self.promised = 0;
        self.recv.lend(&mut &self.pool, 0, usize::MAX, vectors)
    }

    unsafe fn commit_lent(&mut self, n: usize) {
        // SAFETY: promised by the caller.
        unsafe { self.recv.commit(n, &mut self.chain) };
        self.recv.take_unused();
        self.flush();
    }

    fn lend_readable(&self, vectors: &mut [iovec]) -> (usize, usize) {
        let (mut count, mut bytes) = self.chain.fill_vectors(vectors);
        // Reserved bytes lie at the end of the chain, and are not to be read.
        while bytes > self.len() {
            let last = &mut vectors[count - 1];
            let excess = (bytes - self.len()).min(last.iov_len);
            last.iov_len -= excess;
            bytes -= excess;
            if last.iov_len == 0 {
                count -= 1;
            }
        }
        (count, bytes)
    }

    fn adopt(&mut self, slice: impl Into<Slice>) {
        self.promised = 0;
        self.chain.push(slice.into());
        self.flush();
    }

    fn adopt_chain(&mut self, chain: &mut Chain) {
        self.promised = 0;
        self.chain.append(chain);
        self.flush();
    }

    fn drain_into(&mut self, chain: &mut Chain) {
        self.unflushed = 0;
        self.promised = 0;
        self.peeked = None;
        chain.append(&mut self.chain);
    }

    fn tail_mut(&mut self) -> &mut Option<Tail> {
        self.promised = 0;
        self.recv.tail_mut()
    }
}
