//! How many connections one address may have.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

#[derive(Debug)]
pub(crate) struct Sources {
    max: Option<usize>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a>(Option<(&'a Sources, IpAddr)>);

impl Sources {
    pub(crate) fn new(max: Option<usize>) -> Sources {
        Sources { max, open: Mutex::default() }
    }

    /// One more; none if it has as many as it may. Without an address, as over a Unix socket, there is no limit.
    pub(crate) fn enter(&self, source: Option<IpAddr>) -> Option<Place<'_>> {
        let (Some(max), Some(source)) = (self.max, source) else { return Some(Place(None)) };
        let source = source.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(source).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Place(Some((self, source))))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some((sources, source)) = self.0 else { return };
        let mut open = sources.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_count() {
        let sources = Sources::new(Some(2));
        let ip = |text: &str| Some(text.parse().expect("an address"));
        let one = sources.enter(ip("192.0.2.1")).expect("the first");
        let _two = sources.enter(ip("::ffff:192.0.2.1")).expect("the second");
        assert!(sources.enter(ip("192.0.2.1")).is_none());
        let _other = sources.enter(ip("192.0.2.2")).expect("another's first");
        drop(one);
        let again = sources.enter(ip("192.0.2.1")).expect("there is room");
        assert!(sources.enter(None).is_some());
        drop((again, _two, _other));
        assert!(sources.open.lock().expect("no panic").is_empty());
    }
}
