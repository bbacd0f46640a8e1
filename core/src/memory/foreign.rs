//! Memory from outside.

use std::mem;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;

use crate::contain::contain;

/// Bytes of somebody else's. What their owner does as it is dropped must not end whoever drops the last reference.
pub(super) struct Foreign(Bytes);

impl Foreign {
    pub(super) const fn new(bytes: Bytes) -> Foreign {
        Foreign(bytes)
    }

    pub(super) fn into_bytes(mut self) -> Bytes {
        mem::take(&mut self.0)
    }
}

impl Drop for Foreign {
    #[inline]
    fn drop(&mut self) {
        // What is empty has mostly been taken out of here, and is never in a chain.
        if !self.0.is_empty() {
            release(mem::take(&mut self.0));
        }
    }
}

/// Apart, so that dropping a slice of a block stays short.
#[inline(never)]
fn release(bytes: Bytes) {
    contain("the owner of pushed bytes", || drop(bytes));
}

impl Deref for Foreign {
    type Target = Bytes;

    #[inline]
    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl DerefMut for Foreign {
    #[inline]
    fn deref_mut(&mut self) -> &mut Bytes {
        &mut self.0
    }
}
