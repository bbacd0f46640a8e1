//! The keys, when they expire, and who is to hear of what happens to them.
//!
//! An expired key is removed when it is looked up, and by two sweeps: a small one with every batch of requests, and
//! one by a thread of its own, which sleeps for good while no key has a deadline.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use crate::clients::Clients;
use crate::clock::clock;
use crate::interest::Interest;
use crate::keyspace::{Entry, Keyspace, NEVER};
use crate::reply::{Error, error};
use crate::stats::Stats;
use crate::values::{Cursor, Kind, Text, Value};

/// What a command says that meets a value of another kind.
pub(crate) const WRONG_TYPE: Error =
    error("WRONGTYPE Operation against a key holding the wrong kind of value");

/// Keys that a batch of requests removes at most.
const TICK_KEYS_MAX: usize = 16;
/// Keys that the sweeping thread removes at most while it holds the lock.
const SWEEP_KEYS_MAX: usize = 1024;
/// How often the sweeping thread looks while keys have deadlines.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// The store, for all pollers. The lock is held for a batch of requests, never across a wait.
pub(crate) struct SharedStore {
    store: Mutex<Store>,
    /// Notified when the first deadline is set.
    expiring: Arc<Condvar>,
}

impl SharedStore {
    /// An empty store, and the thread that sweeps it. Clients have to say the password, if there is one.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub(crate) fn start(password: Option<&str>) -> io::Result<Arc<SharedStore>> {
        let expiring = Arc::new(Condvar::new());
        let store = Mutex::new(Store::new(expiring.clone(), password));
        let shared = Arc::new(SharedStore { store, expiring });
        let swept = shared.clone();
        // Nobody joins it: it has nothing to finish when the process ends.
        thread::Builder::new().name("expiry".to_owned()).spawn(move || {
            loop {
                swept.sweep();
            }
        })?;
        Ok(shared)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Store> {
        // A handler that panicked ended its connection; each of its steps left the store whole.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self) {
        let mut store = self.lock();
        while store.deadlines.is_empty() {
            store = self.expiring.wait(store).unwrap_or_else(PoisonError::into_inner);
        }
        store.now = clock();
        let more = store.remove_expired(SWEEP_KEYS_MAX);
        drop(store);
        if more {
            thread::yield_now();
        } else {
            thread::sleep(SWEEP_INTERVAL);
        }
    }
}

/// The keys.
pub(crate) struct Store {
    keys: Keyspace,
    /// The keys that expire, the next one first.
    deadlines: BTreeSet<(i64, Text)>,
    expiring: Arc<Condvar>,
    /// The time of the batch; kept only while there are deadlines.
    now: i64,
    random: u64,
    pub(crate) password: Option<Box<[u8]>>,
    pub(crate) clients: Clients,
    /// Keys, by those who watch them.
    pub(crate) watched: Interest,
    /// Channels and patterns of them, by those who have subscribed to them.
    pub(crate) channels: Interest,
    pub(crate) patterns: Interest,
    /// Handlers that have messages, to be woken without the lock.
    pub(crate) wakers: Vec<Waker>,
    /// For INFO.
    pub(crate) stats: Stats,
}

impl Store {
    fn new(expiring: Arc<Condvar>, password: Option<&str>) -> Store {
        let now = clock();
        Store {
            keys: Keyspace::default(),
            deadlines: BTreeSet::new(),
            expiring,
            now,
            random: now.unsigned_abs(),
            password: password.map(|password| password.as_bytes().into()),
            clients: Clients::default(),
            watched: Interest::default(),
            channels: Interest::default(),
            patterns: Interest::default(),
            wakers: Vec::new(),
            stats: Stats::new(),
        }
    }

    /// To be called before a batch of requests: sets the time, and removes a few expired keys.
    #[inline]
    pub(crate) fn tick(&mut self) {
        if !self.deadlines.is_empty() {
            self.now = clock();
            self.remove_expired(TICK_KEYS_MAX);
        }
    }

    /// Removes up to `max` expired keys; says whether more are left.
    fn remove_expired(&mut self, max: usize) -> bool {
        for _ in 0..max {
            match self.deadlines.first() {
                Some((deadline, _)) if *deadline <= self.now => {}
                _ => return false,
            }
            if let Some((_, key)) = self.deadlines.pop_first() {
                self.keys.remove(&key);
                self.stats.expired += 1;
                self.touch(&key);
            }
        }
        true
    }

    /// Keys in the store; among them may be some that expired and were not swept yet, as in Redis.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Keys with a deadline.
    pub(crate) fn expiring_len(&self) -> usize {
        self.deadlines.len()
    }

    /// The value at a key, for a command that reads: counts a hit or a miss.
    #[inline]
    pub(crate) fn read(&mut self, key: &[u8]) -> Option<&mut Value> {
        self.entry(key, true).map(|entry| &mut entry.value)
    }

    /// As [`read`](Store::read), of the kind `K`.
    ///
    /// # Errors
    /// [`WRONG_TYPE`].
    #[inline]
    pub(crate) fn read_as<K: Kind>(&mut self, key: &[u8]) -> Result<Option<&mut K>, Error> {
        self.read(key).map(|value| K::of(value).ok_or(WRONG_TYPE)).transpose()
    }

    /// The value at a key, of the kind `K`, for a command that changes it.
    ///
    /// # Errors
    /// [`WRONG_TYPE`].
    #[inline]
    pub(crate) fn find<K: Kind>(&mut self, key: &[u8]) -> Result<Option<&mut K>, Error> {
        let value = self.entry(key, false).map(|entry| &mut entry.value);
        value.map(|value| K::of(value).ok_or(WRONG_TYPE)).transpose()
    }

    /// Whether there is such a key.
    pub(crate) fn contains(&mut self, key: &[u8]) -> bool {
        self.entry(key, false).is_some()
    }

    /// As [`find`](Store::find), but if there is no such key it is made, with an empty value.
    ///
    /// # Errors
    /// [`WRONG_TYPE`].
    pub(crate) fn find_or_make<K: Kind>(&mut self, key: &[u8]) -> Result<&mut K, Error> {
        if !self.deadlines.is_empty() {
            // An expired one is not found.
            self.contains(key);
        }
        K::of(self.keys.get_or_insert(key, K::empty)).ok_or(WRONG_TYPE)
    }

    #[inline]
    fn entry(&mut self, key: &[u8], reads: bool) -> Option<&mut Entry> {
        let Some(bucket) = self.keys.find(key) else {
            self.stats.misses += u64::from(reads);
            return None;
        };
        if self.keys.at(bucket).is_none_or(|entry| entry.deadline <= self.now) {
            self.remove(key);
            self.stats.expired += 1;
            self.stats.misses += u64::from(reads);
            return None;
        }
        self.stats.hits += u64::from(reads);
        self.keys.at(bucket)
    }

    /// Sets a key, which then does not expire, whatever it held before.
    #[inline]
    pub(crate) fn set(&mut self, key: &[u8], value: Text) {
        let deadline = self.keys.set(key, Value::Text(value));
        if deadline != NEVER {
            self.deadlines.remove(&(deadline, key.into()));
        }
        self.touch(key);
    }

    /// Removes a key; says whether it was there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let Some(entry) = self.keys.remove(key) else { return false };
        self.touch(key);
        if entry.deadline != NEVER {
            self.deadlines.remove(&(entry.deadline, entry.key));
        }
        entry.deadline > self.now
    }

    /// Removes every key.
    pub(crate) fn clear(&mut self) {
        for (key, clients) in self.watched.iter() {
            if self.keys.find(key).is_some() {
                clients.for_each(|client| client.note_change());
            }
        }
        self.keys = Keyspace::default();
        self.deadlines.clear();
    }

    /// The value at a key has changed in place: those who watch it are to know. What sets or removes a key tells by itself.
    #[inline]
    pub(crate) fn touch(&self, key: &[u8]) {
        if !self.watched.is_empty() {
            self.watched.clients(key).for_each(|client| client.note_change());
        }
    }

    /// The keys that have not expired.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.keys.iter().filter(|entry| entry.deadline > self.now)
    }

    /// Keys for a scan, and where it goes on; see [`Keyspace::scan`].
    pub(crate) fn scan(
        &self,
        cursor: Cursor,
        count: usize,
    ) -> (impl Iterator<Item = &Entry>, Cursor) {
        let (entries, next) = self.keys.scan(cursor, count);
        (entries.filter(|entry| entry.deadline > self.now), next)
    }

    /// When a key expires: no key, no deadline, or milliseconds since 1970.
    pub(crate) fn deadline(&mut self, key: &[u8]) -> Option<Option<i64>> {
        self.entry(key, false)
            .map(|entry| Some(entry.deadline).filter(|deadline| *deadline != NEVER))
    }

    /// Sets when a key expires, in milliseconds since 1970, or that it does not. Does nothing if there is no such
    /// key.
    pub(crate) fn set_deadline(&mut self, key: &[u8], deadline: Option<i64>) {
        let deadline = deadline.unwrap_or(NEVER);
        let Some(entry) = self.keys.get(key) else { return };
        let old = std::mem::replace(&mut entry.deadline, deadline);
        if old != NEVER {
            self.deadlines.remove(&(old, key.into()));
        }
        if deadline != NEVER {
            if self.deadlines.is_empty() {
                // The time was not kept.
                self.now = clock();
                self.expiring.notify_one();
            }
            self.deadlines.insert((deadline, key.into()));
        }
        self.touch(key);
    }

    /// A random number below `bound`, or 0 if that is 0. Good enough to pick a member, not for secrets.
    pub(crate) fn random_below(&mut self, bound: usize) -> usize {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        ((u128::from(bits) * bound as u128) >> 64) as usize
    }
}
