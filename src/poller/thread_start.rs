//! What a user has done on a poller's thread around its run.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// What is called on a poller's thread before it runs, and what it leaves, which is dropped when it has run.
#[derive(Clone)]
pub(crate) struct ThreadStart(Arc<dyn Fn() -> Box<dyn Any> + Send + Sync>);

impl ThreadStart {
    pub(crate) fn new(start: impl Fn() -> Box<dyn Any> + Send + Sync + 'static) -> ThreadStart {
        ThreadStart(Arc::new(start))
    }

    pub(crate) fn call(&self) -> Box<dyn Any> {
        (self.0)()
    }
}

impl PartialEq for ThreadStart {
    fn eq(&self, other: &ThreadStart) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ThreadStart {}

impl fmt::Debug for ThreadStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ThreadStart")
    }
}
