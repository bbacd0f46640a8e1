//! Bytes that were written and will not change.

use std::borrow::Borrow;
use std::cmp;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::{Buf, Bytes, BytesMut};

use super::block::Block;
use super::foreign::Foreign;
use crate::error::Error;

/// A refcounted, immutable, contiguous range of bytes: of a pooled block, or of memory from outside (`Bytes`,
/// `Vec<u8>`, `&'static [u8]`).
///
/// ```text
///    Slice ─┐        Slice ─┐
///           ▼               ▼
///  ┌────────┬───────────────┬──────────┬──────────────────┐
///  │ header │ HTTP/1.1 200… │ body…    │ not written yet  │  one block, 3 references:
///  └────────┴───────────────┴──────────┴──────────────────┘  two slices and the writer's tail
/// ```
///
/// # Ownership
/// Cloning and splitting copy no bytes; they count a reference, which is all that threads share. A slice of a block
/// keeps the *whole* block alive, even if it is one byte long: [`pinned_bytes`](Slice::pinned_bytes) says how much
/// that is, and [`compact`](Slice::compact) copies a small slice that is going to be kept for long out of a large
/// block. An empty slice keeps nothing.
///
/// Conversion into [`Bytes`] copies nothing; a slice of a block costs one small allocation, since `Bytes` wants an
/// owner of its own kind. Conversion into `Vec<u8>` and `BytesMut` copies, unless the slice is the only owner of
/// memory from outside.
///
/// ```
/// use bytes::Bytes;
/// # extern crate duopoll_core as duopoll;
/// use duopoll::{LinkBuffer, Slice};
///
/// let mut buffer = LinkBuffer::new();
/// buffer.write(b"key=value")?;
/// buffer.flush();
///
/// let mut pair: Slice = buffer.next(9)?;
/// let key = pair.split_to(3)?;
/// let value = pair.subslice(1..6)?;
/// drop((buffer, pair));                   // the block stays
/// let sent = std::thread::spawn(move || Bytes::from(value)).join().unwrap();
/// assert_eq!((key, &sent[..]), (Slice::from("key"), &b"value"[..]));
/// # Ok::<(), duopoll::Error>(())
/// ```
pub struct Slice(Repr);

/// The niche of `Bytes` tells the variants apart, so both fit in four words.
enum Repr {
    Block { ptr: NonNull<u8>, len: Len, block: Block },
    Foreign(Foreign),
}

/// The length of a range of a block, and whether other slices may have bytes of the same range: together, since a slice
/// is four words.
///
/// Atomic, since cloning says it of a slice that is only borrowed. Nothing is ordered by it: who may write to the bytes has
/// the slice for itself, and so knows what was done with it before.
struct Len(AtomicUsize);

const SHARED: usize = 1 << (usize::BITS - 1);

impl Len {
    #[inline]
    fn get(&self) -> usize {
        self.0.load(Relaxed) & !SHARED
    }

    /// Changes the length; whether it is shared stays.
    #[inline]
    fn set(&mut self, len: usize) {
        let word = self.0.get_mut();
        *word = (*word & SHARED) | len;
    }

    /// The same length, of a range that has a second owner from now on.
    #[inline]
    fn share(&self) -> Len {
        let shared = self.0.load(Relaxed) | SHARED;
        self.0.store(shared, Relaxed);
        Len(AtomicUsize::new(shared))
    }

    /// Another length, of a range of the same owners.
    #[inline]
    fn part(&self, len: usize) -> Len {
        Len(AtomicUsize::new((self.0.load(Relaxed) & SHARED) | len))
    }

    #[inline]
    fn is_shared(&self) -> bool {
        self.0.load(Relaxed) & SHARED != 0
    }
}

const _: () = assert!(size_of::<Slice>() == 32);

// SAFETY: the range is immutable while the slice lives, and the block's count is atomic.
unsafe impl Send for Slice {}
// SAFETY: as above.
unsafe impl Sync for Slice {}

impl Slice {
    /// A slice of nothing.
    pub const fn empty() -> Slice {
        Slice(Repr::Foreign(Foreign::new(Bytes::new())))
    }

    /// A slice of bytes that live as long as the program.
    pub const fn from_static(bytes: &'static [u8]) -> Slice {
        Slice(Repr::Foreign(Foreign::new(Bytes::from_static(bytes))))
    }

    #[inline]
    pub(super) fn of_block(ptr: NonNull<u8>, len: usize, block: Block) -> Slice {
        Slice(Repr::Block { ptr, len: Len(AtomicUsize::new(len)), block })
    }

    /// Length in bytes. O(1).
    #[inline]
    pub fn len(&self) -> usize {
        match &self.0 {
            Repr::Block { len, .. } => len.get(),
            Repr::Foreign(bytes) => bytes.len(),
        }
    }

    /// Whether it holds no byte. O(1).
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `n` bytes; `self` keeps the rest. O(1), no copy.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if there are fewer than `n`.
    #[inline]
    pub fn split_to(&mut self, n: usize) -> Result<Slice, Error> {
        let available = self.len();
        if n > available {
            return Err(Error::NotEnough { needed: n, available });
        }
        if n == available {
            return Ok(std::mem::take(self));
        }
        if n == 0 {
            return Ok(Slice::empty());
        }
        Ok(match &mut self.0 {
            Repr::Block { ptr, len, block } => {
                let front =
                    Slice(Repr::Block { ptr: *ptr, len: len.part(n), block: block.clone() });
                // SAFETY: n < len, so the pointer stays in the block.
                *ptr = unsafe { ptr.add(n) };
                len.set(available - n);
                front
            }
            Repr::Foreign(bytes) => Slice(Repr::Foreign(Foreign::new(bytes.split_to(n)))),
        })
    }

    /// A part of the slice. O(1), no copy.
    ///
    /// # Errors
    /// [`Error::NotEnough`] if the range reaches beyond the end or is reversed.
    pub fn subslice(&self, range: Range<usize>) -> Result<Slice, Error> {
        if range.start > range.end || range.end > self.len() {
            let needed = range.end.max(range.start);
            return Err(Error::NotEnough { needed, available: self.len() });
        }
        if range.is_empty() {
            return Ok(Slice::empty());
        }
        let mut slice = self.clone();
        slice.drop_front(range.start);
        slice.truncate(range.end - range.start);
        Ok(slice)
    }

    /// Shortens the slice to its first `len` bytes; does nothing if it has no more. O(1).
    pub fn truncate(&mut self, len: usize) {
        if len == 0 {
            // Nothing is left to keep a block alive for.
            *self = Slice::empty();
        }
        match &mut self.0 {
            Repr::Block { len: own, .. } => own.set(len.min(own.get())),
            Repr::Foreign(bytes) => bytes.truncate(len),
        }
    }

    /// The bytes, to be changed where they lie, if no other slice can have them: it is of a block, and neither it nor what it was split
    /// from was ever cloned. So it is with what was received, for who takes it out of the buffer. O(1).
    ///
    /// ```
    /// # extern crate duopoll_core as duopoll;
    /// # use duopoll::LinkBuffer;
    /// let mut buffer = LinkBuffer::new();
    /// buffer.write(b"get key")?;
    /// buffer.flush();
    /// let mut verb = buffer.next(3)?;
    /// verb.get_mut().expect("nobody else has it").make_ascii_uppercase();
    /// assert_eq!(verb, b"GET");
    /// let second = verb.clone();
    /// assert!(verb.get_mut().is_none());
    /// # drop(second);
    /// # Ok::<(), duopoll::Error>(())
    /// ```
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.0 {
            Repr::Block { ptr, len, .. } if !len.is_shared() => {
                // SAFETY: the range is initialised, and `block` keeps it alive. It was a tail's, which gave it up for one slice;
                // splitting leaves each byte with one slice, and none of them was cloned.
                Some(unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), len.get()) })
            }
            _ => None,
        }
    }

    /// Bytes of memory that this slice keeps alive: the capacity of its block; of foreign memory, only its own
    /// length is known.
    pub fn pinned_bytes(&self) -> usize {
        match &self.0 {
            Repr::Block { block, .. } => block.capacity(),
            Repr::Foreign(bytes) => bytes.len(),
        }
    }

    /// The same bytes in memory of about their own size, copied if this slice pins more than twice its length.
    /// For a small slice that is kept for long.
    ///
    /// ```
    /// # extern crate duopoll_core as duopoll;
    /// # use duopoll::{LinkBuffer, Slice};
    /// let mut buffer = LinkBuffer::new();
    /// buffer.write(&[7; 4000])?;
    /// buffer.flush();
    /// let key = buffer.next(10)?;
    /// assert!(key.pinned_bytes() >= 4000);
    /// assert_eq!(key.compact().pinned_bytes(), 10);
    /// # Ok::<(), duopoll::Error>(())
    /// ```
    pub fn compact(self) -> Slice {
        if self.pinned_bytes() > 2 * self.len() { Slice::from(self.to_vec()) } else { self }
    }

    /// Drops the first `n` bytes, which exist.
    #[inline]
    pub(crate) fn drop_front(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        match &mut self.0 {
            Repr::Block { ptr, len, .. } => {
                let n = n.min(len.get());
                // SAFETY: at most one past the end of the slice.
                *ptr = unsafe { ptr.add(n) };
                len.set(len.get() - n);
            }
            Repr::Foreign(bytes) => bytes.advance(n),
        }
    }

    /// Takes `next` in, if it continues this slice in the same block; else gives it back.
    #[inline]
    pub(crate) fn merge(&mut self, next: Slice) -> Result<(), Slice> {
        match (&mut self.0, &next.0) {
            (
                Repr::Block { ptr, len, block },
                Repr::Block { ptr: next_ptr, len: next_len, block: next_block },
                // SAFETY: one past the end of the slice is within its block or one past it.
            ) if block.is(next_block) && unsafe { ptr.add(len.get()) } == *next_ptr => {
                // Shared if either was.
                let whole = len.get() + next_len.get();
                *len = if next_len.is_shared() { next_len.part(whole) } else { len.part(whole) };
                Ok(())
            }
            _ => Err(next),
        }
    }

    /// Extends the slice over the `n` bytes behind it.
    ///
    /// # Safety
    /// The bytes belong to the slice's block, are initialised and immutable from now on.
    #[inline]
    pub(super) unsafe fn grow(&mut self, n: usize) {
        if let Repr::Block { len, .. } = &mut self.0 {
            len.set(len.get() + n);
        }
    }

    /// The bytes of the block that it keeps alive; 0 if that is not a pool's.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.block().map_or(0, Block::capacity)
    }

    #[inline]
    pub(super) fn block(&self) -> Option<&Block> {
        match &self.0 {
            Repr::Block { block, .. } => Some(block),
            Repr::Foreign(_) => None,
        }
    }

    #[inline]
    pub(super) fn end(&self) -> NonNull<u8> {
        let bytes = NonNull::from(&**self);
        // SAFETY: one past the end of the slice.
        unsafe { bytes.cast::<u8>().add(self.len()) }
    }
}

impl Deref for Slice {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Block { ptr, len, block } => {
                block.payload().read();
                // SAFETY: the range is initialised and immutable, and `block` keeps it alive.
                unsafe { std::slice::from_raw_parts(ptr.as_ptr(), len.get()) }
            }
            Repr::Foreign(bytes) => bytes,
        }
    }
}

impl Clone for Slice {
    #[inline]
    fn clone(&self) -> Slice {
        match &self.0 {
            Repr::Block { ptr, len, block } => {
                Slice(Repr::Block { ptr: *ptr, len: len.share(), block: block.clone() })
            }
            Repr::Foreign(bytes) => Bytes::clone(bytes).into(),
        }
    }
}

impl Default for Slice {
    fn default() -> Slice {
        Slice::empty()
    }
}

impl Buf for Slice {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self
    }

    fn advance(&mut self, n: usize) {
        assert!(n <= self.len(), "advance({n}) beyond the {} bytes of the slice", self.len());
        if n == self.len() {
            *self = Slice::empty();
        } else {
            self.drop_front(n);
        }
    }

    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        match self.split_to(n) {
            Ok(front) => front.into(),
            Err(error) => panic!("copy_to_bytes: {error}"),
        }
    }
}

/// Not copied.
impl From<Bytes> for Slice {
    fn from(bytes: Bytes) -> Slice {
        Slice(Repr::Foreign(Foreign::new(bytes)))
    }
}

impl From<Vec<u8>> for Slice {
    fn from(bytes: Vec<u8>) -> Slice {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Slice {
    fn from(text: String) -> Slice {
        text.into_bytes().into()
    }
}

impl From<&'static [u8]> for Slice {
    fn from(bytes: &'static [u8]) -> Slice {
        Slice::from_static(bytes)
    }
}

impl<const N: usize> From<&'static [u8; N]> for Slice {
    fn from(bytes: &'static [u8; N]) -> Slice {
        Slice::from_static(bytes)
    }
}

impl From<&'static str> for Slice {
    fn from(text: &'static str) -> Slice {
        Slice::from_static(text.as_bytes())
    }
}

/// Not copied. A slice of a block costs one small allocation; `Bytes` wants an owner of its own kind.
impl From<Slice> for Bytes {
    fn from(slice: Slice) -> Bytes {
        match slice.0 {
            Repr::Foreign(bytes) => bytes.into_bytes(),
            Repr::Block { .. } => Bytes::from_owner(slice),
        }
    }
}

/// Copied, unless the slice holds `Bytes` from outside that nobody else refers to: a block is not a `Vec`.
impl From<Slice> for Vec<u8> {
    fn from(slice: Slice) -> Vec<u8> {
        match slice.0 {
            Repr::Foreign(bytes) => bytes.into_bytes().into(),
            Repr::Block { .. } => slice.to_vec(),
        }
    }
}

/// Copied, unless the slice holds `Bytes` from outside that nobody else refers to: a block is not a `BytesMut`.
impl From<Slice> for BytesMut {
    fn from(slice: Slice) -> BytesMut {
        match slice.0 {
            Repr::Foreign(bytes) => bytes.into_bytes().into(),
            Repr::Block { .. } => BytesMut::from(&slice[..]),
        }
    }
}

/// Not copied.
impl From<BytesMut> for Slice {
    fn from(bytes: BytesMut) -> Slice {
        bytes.freeze().into()
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for Slice {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Slice {
    fn eq(&self, other: &Slice) -> bool {
        **self == **other
    }
}

impl Eq for Slice {}

macro_rules! eq_bytes {
    ($($other:ty),*) => {$(
        impl PartialEq<$other> for Slice {
            fn eq(&self, other: &$other) -> bool {
                let other: &[u8] = other.as_ref();
                **self == *other
            }
        }
    )*};
}

eq_bytes!([u8], str, &[u8], &str, Vec<u8>, Bytes);

impl<const N: usize> PartialEq<[u8; N]> for Slice {
    fn eq(&self, other: &[u8; N]) -> bool {
        **self == *other
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Slice {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == **other
    }
}

impl PartialOrd for Slice {
    fn partial_cmp(&self, other: &Slice) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slice {
    fn cmp(&self, other: &Slice) -> cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Slice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}
