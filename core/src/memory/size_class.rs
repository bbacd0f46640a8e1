//! What waits of one size: the mappings that have free blocks.
//!
//! Its owner is whoever holds the lock around it, and owns all mappings of the class with it.

use std::ptr::NonNull;

use super::mapping::{FreeBlock, Mapping};

/// The mappings of one size class that have room. Full ones are found through their blocks when these come back.
#[derive(Default)]
pub(super) struct SizeClass {
    /// Some blocks are in use. These are filled up first, so that others become vacant.
    partial: List,
    /// No block is in use: what can be unmapped. The one that was in use last comes first.
    vacant: List,
    vacant_bytes: usize,
    /// Bytes of free blocks whose memory is there, in mappings of both kinds.
    waiting_bytes: usize,
}

// SAFETY: the size class owns its mappings.
unsafe impl Send for SizeClass {}

impl SizeClass {
    /// A block, and whether it was used before.
    pub(super) fn take(&mut self) -> Option<(FreeBlock, bool)> {
        let mapping = match self.partial.first {
            Some(mapping) => mapping,
            None => {
                let mapping = self.pop_vacant_first()?;
                self.partial.push_front(mapping);
                mapping
            }
        };
        // SAFETY: the size class owns the mappings in its lists.
        unsafe {
            let taken = Mapping::take(mapping);
            if let Some((_, true)) = taken {
                self.waiting_bytes -= (*mapping.as_ptr()).capacity();
            }
            if (*mapping.as_ptr()).is_full() {
                self.partial.remove(mapping);
            }
            taken
        }
    }

    /// Takes in a mapping that has room.
    pub(super) fn add(&mut self, mapping: NonNull<Mapping>) {
        self.partial.push_front(mapping);
    }

    /// Takes back a block. Says whether its mapping became vacant.
    ///
    /// # Safety
    /// The block was taken out of a mapping of this size class.
    pub(super) unsafe fn put(&mut self, block: FreeBlock, discarded: bool) -> bool {
        let mapping = block.mapping;
        // SAFETY: the mapping is in a list of this size class, or full and so in none. The lock is held, which guards
        // all of them.
        unsafe {
            let was_full = (*mapping.as_ptr()).is_full();
            Mapping::put(block, discarded);
            if !discarded {
                self.waiting_bytes += (*mapping.as_ptr()).capacity();
            }
            let vacant = (*mapping.as_ptr()).is_vacant();
            match (was_full, vacant) {
                (true, false) => self.partial.push_front(mapping),
                (false, true) => self.partial.remove(mapping),
                _ => {}
            }
            if vacant {
                self.vacant.push_front(mapping);
                self.vacant_bytes += (*mapping.as_ptr()).waiting_bytes();
            }
            vacant
        }
    }

    /// Gives the memory of free large blocks back whose neighbours are in use, `wanted` bytes or a little more if there are as many.
    /// Returns how many. The mappings that were not used for longest come first.
    pub(super) fn discard(&mut self, wanted: usize) -> usize {
        if self.waiting_bytes == self.vacant_bytes {
            return 0;
        }
        let (mut discarded, mut at) = (0, self.partial.last);
        while let Some(mapping) = at.filter(|_| discarded < wanted) {
            // SAFETY: the size class owns the mappings in its lists.
            unsafe {
                match Mapping::discard_free(mapping) {
                    Some(bytes) => discarded += bytes,
                    // Small ones, all of this class.
                    None => break,
                }
                at = (*mapping.as_ptr()).previous;
            }
        }
        self.waiting_bytes -= discarded;
        discarded
    }

    /// Bytes in mappings that could be unmapped.
    pub(super) fn vacant_bytes(&self) -> usize {
        self.vacant_bytes
    }

    /// Takes out the vacant mapping that was used last, if the memory of its blocks was given back: it is not worth keeping.
    pub(super) fn pop_discarded(&mut self) -> Option<NonNull<Mapping>> {
        // SAFETY: the size class owns the mappings in its lists.
        let mapping =
            self.vacant.first.filter(|mapping| unsafe { mapping.as_ref() }.has_discarded())?;
        self.remove_for_good(mapping);
        Some(mapping)
    }

    /// Takes out the vacant mapping that was not used for longest.
    pub(super) fn pop_vacant(&mut self) -> Option<NonNull<Mapping>> {
        let mapping = self.vacant.last?;
        self.remove_for_good(mapping);
        Some(mapping)
    }

    fn pop_vacant_first(&mut self) -> Option<NonNull<Mapping>> {
        let mapping = self.vacant.first?;
        self.remove_vacant(mapping);
        Some(mapping)
    }

    /// Nobody takes a block of it any more.
    fn remove_for_good(&mut self, mapping: NonNull<Mapping>) {
        self.remove_vacant(mapping);
        // SAFETY: it was in the list, whose mappings the size class owns.
        self.waiting_bytes -= unsafe { mapping.as_ref() }.waiting_bytes();
    }

    fn remove_vacant(&mut self, mapping: NonNull<Mapping>) {
        // SAFETY: the mapping is in this list.
        unsafe {
            self.vacant.remove(mapping);
            self.vacant_bytes -= (*mapping.as_ptr()).waiting_bytes();
        }
    }
}

impl Drop for SizeClass {
    fn drop(&mut self) {
        // A block in use keeps its pool alive, so all mappings are vacant when this happens.
        debug_assert!(self.partial.first.is_none());
        while let Some(mapping) = self.pop_vacant() {
            // SAFETY: vacant, and in no list any more.
            let _ = unsafe { Mapping::unmap(mapping) };
        }
        debug_assert_eq!(self.waiting_bytes, 0);
    }
}

/// A doubly linked list of mappings.
#[derive(Default)]
struct List {
    first: Option<NonNull<Mapping>>,
    last: Option<NonNull<Mapping>>,
}

impl List {
    fn push_front(&mut self, mapping: NonNull<Mapping>) {
        let next = self.first.replace(mapping);
        // SAFETY: whoever owns the list owns its mappings, and this one.
        unsafe {
            (*mapping.as_ptr()).previous = None;
            (*mapping.as_ptr()).next = next;
            match next {
                Some(next) => (*next.as_ptr()).previous = Some(mapping),
                None => self.last = Some(mapping),
            }
        }
    }

    /// # Safety
    /// The mapping is in this list.
    unsafe fn remove(&mut self, mapping: NonNull<Mapping>) {
        // SAFETY: promised by the caller; whoever owns the list owns its mappings.
        unsafe {
            let (previous, next) = ((*mapping.as_ptr()).previous, (*mapping.as_ptr()).next);
            match previous {
                Some(previous) => (*previous.as_ptr()).next = next,
                None => self.first = next,
            }
            match next {
                Some(next) => (*next.as_ptr()).previous = previous,
                None => self.last = previous,
            }
        }
    }
}
