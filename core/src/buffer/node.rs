//! The nodes of chains, and the per-thread list of spare ones.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::memory::Slice;

pub(super) struct Node {
    pub(super) slice: Slice,
    pub(super) next: Option<NonNull<Node>>,
}

/// Spare nodes kept per thread: 10 KiB.
const SPARE_NODES_MAX: usize = 256;

thread_local! {
    /// Boxed, since it is the allocation that is worth keeping.
    #[expect(clippy::vec_box)]
    static SPARE: RefCell<Vec<Box<MaybeUninit<Node>>>> = const { RefCell::new(Vec::new()) };
}

#[inline]
pub(super) fn new(slice: Slice) -> NonNull<Node> {
    // The list is gone when a chain is changed by the destructor of another thread-local; then allocate.
    let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
    let mut node = spare.unwrap_or_else(Box::new_uninit);
    node.write(Node { slice, next: None });
    NonNull::from(Box::leak(node)).cast()
}

/// Takes a node apart, and keeps its memory for another.
///
/// # Safety
/// The node comes from [`new`], belongs to the caller, and is not looked at again.
#[inline]
pub(super) unsafe fn take(node: NonNull<Node>) -> (Slice, Option<NonNull<Node>>) {
    // SAFETY: promised by the caller.
    let Node { slice, next } = unsafe { node.read() };
    // SAFETY: as above; what is left is the allocation.
    let spare = unsafe { Box::from_raw(node.as_ptr().cast::<MaybeUninit<Node>>()) };
    let _ = SPARE.try_with(|list| {
        let mut list = list.borrow_mut();
        if list.len() < SPARE_NODES_MAX {
            list.push(spare);
        }
    });
    (slice, next)
}
