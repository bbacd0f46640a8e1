//! The table of keys: a hash table that also has an order, by which it is scanned in pieces while it changes.
//!
//! An entry lies in the table itself, one look away from its hash. The order has the hashes only, and each entry has its
//! place in it: adding or removing a key costs a little more, looking one up does not.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry as Place;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::values::{Cursor, Text, Value};

#[derive(Default)]
pub(crate) struct Keyspace {
    entries: HashTable<Entry>,
    /// The hashes of all keys. A key that is removed gives its place to the last.
    order: Vec<u64>,
    hasher: DefaultHashBuilder,
}

pub(crate) struct Entry {
    pub(crate) key: Text,
    pub(crate) value: Value,
    /// In milliseconds since 1970.
    pub(crate) deadline: i64,
    place: usize,
}

/// The deadline of a key that does not expire.
pub(crate) const NEVER: i64 = i64::MAX;

impl Entry {
    fn new(key: &[u8], value: Value, place: usize) -> Entry {
        Entry { key: key.into(), value, deadline: NEVER, place }
    }
}

impl Keyspace {
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Where a key is, until the table changes.
    #[inline]
    pub(crate) fn find(&self, key: &[u8]) -> Option<usize> {
        self.entries.find_bucket_index(self.hasher.hash_one(key), |entry| *entry.key == *key)
    }

    /// The entry that was found there.
    #[inline]
    pub(crate) fn at(&mut self, bucket: usize) -> Option<&mut Entry> {
        self.entries.get_bucket_mut(bucket)
    }

    #[inline]
    pub(crate) fn get(&mut self, key: &[u8]) -> Option<&mut Entry> {
        self.entries.find_mut(self.hasher.hash_one(key), |entry| *entry.key == *key)
    }

    /// The value of a key; if it is not there, it gets one, and does not expire.
    pub(crate) fn get_or_insert(&mut self, key: &[u8], make: fn() -> Value) -> &mut Value {
        let Keyspace { entries, order, hasher } = self;
        let hash = hasher.hash_one(key);
        let rehash = |entry: &Entry| order.get(entry.place).copied().unwrap_or_default();
        match entries.entry(hash, |entry| *entry.key == *key, rehash) {
            Place::Occupied(entry) => &mut entry.into_mut().value,
            Place::Vacant(vacant) => {
                let entry = vacant.insert(Entry::new(key, make(), order.len()));
                order.push(hash);
                &mut entry.into_mut().value
            }
        }
    }

    /// Sets a key; returns when the value that it replaces was to expire.
    #[inline]
    pub(crate) fn set(&mut self, key: &[u8], value: Value) -> i64 {
        let Keyspace { entries, order, hasher } = self;
        let hash = hasher.hash_one(key);
        let rehash = |entry: &Entry| order.get(entry.place).copied().unwrap_or_default();
        match entries.entry(hash, |entry| *entry.key == *key, rehash) {
            Place::Occupied(mut entry) => {
                let entry = entry.get_mut();
                entry.value = value;
                std::mem::replace(&mut entry.deadline, NEVER)
            }
            Place::Vacant(vacant) => {
                vacant.insert(Entry::new(key, value, order.len()));
                order.push(hash);
                NEVER
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let hash = self.hasher.hash_one(key);
        let found = self.entries.find_entry(hash, |entry| *entry.key == *key).ok()?;
        let (entry, _) = found.remove();
        self.order.swap_remove(entry.place);
        let last = self.order.len();
        if let Some(&moved) = self.order.get(entry.place) {
            if let Some(moved) = self.entries.find_mut(moved, |entry| entry.place == last) {
                moved.place = entry.place;
            }
        }
        Some(entry)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Up to `count` entries for a scan, and where it goes on; see [`Table::scan`](crate::values::Table::scan).
    pub(crate) fn scan(
        &self,
        cursor: Cursor,
        count: usize,
    ) -> (impl Iterator<Item = &Entry>, Cursor) {
        let (range, next) = cursor.range(self.order.len(), count);
        let entries = range.filter_map(|place| {
            self.entries.find(*self.order.get(place)?, |entry| entry.place == place)
        });
        (entries, next)
    }
}
