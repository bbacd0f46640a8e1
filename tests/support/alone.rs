//! Tests that look at what the whole process has open.

use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use super::{eventually, open_descriptors};

/// The test that has this runs alone, and nothing of an earlier one is open any more: a poller's thread closes its own
/// descriptors, when it comes to it.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static AT_FIRST: OnceLock<usize> = OnceLock::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let at_first = *AT_FIRST.get_or_init(open_descriptors);
    eventually("the test before has ended", || open_descriptors() <= at_first);
    alone
}

/// Who looks at the whole process, and the others.
static TESTS: RwLock<()> = RwLock::new(());

/// The test that has this may run beside others, but not beside one that has [`nobody_beside`].
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    TESTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// The test that has this runs alone among those that say whether they do. What earlier ones have begun may still end.
pub fn nobody_beside() -> RwLockWriteGuard<'static, ()> {
    TESTS.write().unwrap_or_else(PoisonError::into_inner)
}
