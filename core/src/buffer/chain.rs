//! A chain of slices: the list under every buffer.
//!
//! Singly linked, so that one chain is spliced onto another in O(1) whatever their lengths. The nodes come from a
//! small per-thread free list, so a chain in steady state allocates nothing. Neighbours that touch in memory are
//! merged into one slice when they are pushed. No node is empty.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use libc::iovec;

use super::node::{self, Node};
use crate::memory::{Slice, Tail};

/// The most bytes that one system call is offered: Linux transfers at most `MAX_RW_COUNT`, 2 GiB less a page.
pub const IO_BYTES_MAX: usize = 0x7fff_f000;

/// The most vectors that one system call accepts: `IOV_MAX`.
pub const IO_VECTORS_MAX: usize = libc::UIO_MAXIOV as usize;

/// A queue of bytes, kept as slices.
#[derive(Default)]
pub struct Chain {
    ends: Option<Ends>,
    len: usize,
    owns: PhantomData<Box<Node>>,
}

#[derive(Clone, Copy)]
struct Ends {
    first: NonNull<Node>,
    last: NonNull<Node>,
}

// SAFETY: the chain owns its nodes, and slices are `Send`.
unsafe impl Send for Chain {}
// SAFETY: a shared chain only gives shared slices, which are `Sync`.
unsafe impl Sync for Chain {}

impl Chain {
    /// An empty chain.
    pub const fn new() -> Chain {
        Chain { ends: None, len: 0, owns: PhantomData }
    }

    /// Bytes in the chain. O(1).
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the chain holds no byte. O(1).
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a slice at the end; an empty one is dropped. O(1).
    #[inline]
    pub fn push(&mut self, mut slice: Slice) {
        if slice.is_empty() {
            return;
        }
        self.len += slice.len();
        if let Some(last) = self.last_mut() {
            match last.merge(slice) {
                Ok(()) => return,
                Err(apart) => slice = apart,
            }
        }
        let node = node::new(slice);
        match &mut self.ends {
            None => self.ends = Some(Ends { first: node, last: node }),
            Some(ends) => {
                // SAFETY: the chain owns its nodes.
                unsafe { (*ends.last.as_ptr()).next = Some(node) };
                ends.last = node;
            }
        }
    }

    /// Commits the first `n` bytes of `tail` at the end of the chain. O(1).
    ///
    /// # Safety
    /// As for [`Tail::commit`].
    #[inline]
    pub unsafe fn push_committed(&mut self, tail: &mut Tail, n: usize) {
        if n == 0 {
            return;
        }
        if let Some(last) = self.last_mut() {
            if tail.touches(last) {
                // SAFETY: promised by the caller; the last slice touches the tail.
                unsafe { tail.commit_onto(n, last) };
                self.len += n;
                return;
            }
        }
        // SAFETY: promised by the caller.
        self.push(unsafe { tail.commit(n) });
    }

    /// Puts a slice before the first. O(1).
    pub(crate) fn push_front(&mut self, slice: Slice) {
        if slice.is_empty() {
            return;
        }
        self.len += slice.len();
        let node = node::new(slice);
        let ends = self.ends.get_or_insert(Ends { first: node, last: node });
        if ends.first != node {
            // SAFETY: a new node, linked nowhere yet.
            unsafe { (*node.as_ptr()).next = Some(ends.first) };
            ends.first = node;
        }
    }

    /// Takes the first slice. O(1).
    #[inline]
    pub fn pop(&mut self) -> Option<Slice> {
        let ends = self.ends?;
        // SAFETY: the chain owns its nodes, and gives this one up.
        let (slice, next) = unsafe { node::take(ends.first) };
        self.ends = next.map(|first| Ends { first, last: ends.last });
        self.len -= slice.len();
        Some(slice)
    }

    /// Moves the whole of `other` to the end. O(1).
    pub fn append(&mut self, other: &mut Chain) {
        if self.ends.is_some() {
            // The pieces of one message meet here; `push` merges them where they touch.
            if let Some(seam) = other.pop() {
                self.push(seam);
            }
        }
        let Some(theirs) = other.ends.take() else { return };
        self.len += std::mem::take(&mut other.len);
        match &mut self.ends {
            None => self.ends = Some(theirs),
            Some(ours) => {
                // SAFETY: both chains owned their nodes, now this one does.
                unsafe { (*ours.last.as_ptr()).next = Some(theirs.first) };
                ours.last = theirs.last;
            }
        }
    }

    /// Drops the first `n` bytes, or all if there are fewer. O(slices dropped).
    #[inline]
    pub fn advance(&mut self, mut n: usize) {
        n = n.min(self.len);
        while n > 0 {
            let Some(first) = self.first_mut() else { return };
            let len = first.len();
            if n < len {
                first.drop_front(n);
                self.len -= n;
                return;
            }
            n -= len;
            self.pop();
        }
    }

    /// The first `n` bytes as a chain of their own, or all if there are fewer. O(slices moved), no copy.
    pub fn split_to(&mut self, mut n: usize) -> Chain {
        if n >= self.len {
            return std::mem::take(self);
        }
        let mut front = Chain::new();
        while n > 0 {
            let Some(first) = self.first_mut() else { break };
            if n < first.len() {
                if let Ok(part) = first.split_to(n) {
                    self.len -= n;
                    front.push(part);
                }
                break;
            }
            if let Some(slice) = self.pop() {
                n -= slice.len();
                front.push(slice);
            }
        }
        front
    }

    /// The bytes behind the first `n` as a chain of their own. O(slices kept), no copy.
    pub fn split_off(&mut self, n: usize) -> Chain {
        let front = self.split_to(n);
        std::mem::replace(self, front)
    }

    /// The first slice.
    #[inline]
    pub fn first(&self) -> Option<&Slice> {
        // SAFETY: the chain owns its nodes, and is borrowed.
        self.ends.map(|ends| unsafe { &(*ends.first.as_ptr()).slice })
    }

    #[inline]
    pub(crate) fn first_mut(&mut self) -> Option<&mut Slice> {
        // SAFETY: the chain owns its nodes, and is mutably borrowed.
        self.ends.map(|ends| unsafe { &mut (*ends.first.as_ptr()).slice })
    }

    /// Shortens the first slice by splitting off its first `n < len` bytes.
    #[inline]
    pub(crate) fn split_first(&mut self, n: usize) -> Option<Slice> {
        let part = self.first_mut()?.split_to(n).ok()?;
        self.len -= part.len();
        debug_assert!(self.first().is_some_and(|rest| !rest.is_empty()));
        Some(part)
    }

    #[inline]
    fn last_mut(&mut self) -> Option<&mut Slice> {
        // SAFETY: the chain owns its nodes, and is mutably borrowed.
        self.ends.map(|ends| unsafe { &mut (*ends.last.as_ptr()).slice })
    }

    /// The slices in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { next: self.ends.map(|ends| ends.first), chain: PhantomData }
    }

    /// Describes the first bytes as vectors for a system call: at most `vectors.len()` of them, at most
    /// [`IO_VECTORS_MAX`], and at most [`IO_BYTES_MAX`] bytes. Returns how many vectors and how many bytes. The vectors are valid until the chain
    /// is changed.
    pub fn fill_vectors(&self, vectors: &mut [iovec]) -> (usize, usize) {
        Chain::describe(self.iter(), vectors, IO_BYTES_MAX)
    }

    /// As [`fill_vectors`](Chain::fill_vectors), for slices of a chain and at most `max` bytes.
    pub(crate) fn describe<'a>(
        slices: impl Iterator<Item = &'a Slice>,
        vectors: &mut [iovec],
        max: usize,
    ) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for (vector, slice) in vectors.iter_mut().take(IO_VECTORS_MAX).zip(slices) {
            let len = slice.len().min(max - bytes);
            if len == 0 {
                break;
            }
            *vector = iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: len };
            count += 1;
            bytes += len;
        }
        (count, bytes)
    }

    /// The first `n` bytes once more, or all if there are fewer: as a chain of their own. O(slices), no copy.
    #[cfg(feature = "zerocopy")]
    pub(crate) fn front(&self, n: usize) -> Chain {
        let mut front = Chain::new();
        for slice in self {
            let Ok(part) = slice.subslice(0..slice.len().min(n - front.len())) else { break };
            if part.is_empty() {
                break;
            }
            front.push(part);
        }
        front
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// The slices of a [`Chain`], in order.
#[derive(Clone)]
pub struct Iter<'a> {
    next: Option<NonNull<Node>>,
    chain: PhantomData<&'a Chain>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Slice;

    fn next(&mut self) -> Option<&'a Slice> {
        let node = self.next?;
        // SAFETY: the chain is borrowed, so its nodes live and do not change.
        let node = unsafe { &*node.as_ptr() };
        self.next = node.next;
        Some(&node.slice)
    }
}

impl<'a> IntoIterator for &'a Chain {
    type Item = &'a Slice;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl fmt::Debug for Iter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}
