//! What others may know of a client, and do to it: see who it is, send it messages, end its connection.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use duopoll::{Address, Connection, Control};

use crate::clock::clock;
use crate::outbox::{Message, Outbox, TooMuch};

/// A client, for those who are not on its connection.
pub(crate) struct Client {
    /// From 1 on, in the order in which they came.
    pub(crate) id: u64,
    pub(crate) control: Control,
    pub(crate) address: String,
    pub(crate) local_address: String,
    /// When it came, in milliseconds since 1970.
    pub(crate) since: i64,
    pub(crate) outbox: Outbox,
    /// When its last requests came, in milliseconds since 1970.
    pub(crate) last_seen: AtomicI64,
    /// The place of its last command in the table of them; [`u8::MAX`] before the first.
    pub(crate) last_command: AtomicU8,
    /// A key that it watches has changed. Written and read under the store's lock, as everything here.
    changed: AtomicBool,
    ended: AtomicBool,
    facts: Mutex<Facts>,
}

/// What changes now and then.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) library: String,
    pub(crate) library_version: String,
    pub(crate) resp3: bool,
    pub(crate) channels: usize,
    pub(crate) patterns: usize,
    /// Commands that wait for EXEC, within a transaction.
    pub(crate) queued: Option<usize>,
}

impl Client {
    pub(crate) fn new(id: u64, connection: &Connection) -> Client {
        let name = |address: std::io::Result<Address>| match address {
            Ok(address) => address.to_string(),
            Err(_) => "?:0".to_owned(),
        };
        let now = clock();
        Client {
            id,
            control: connection.control(),
            address: name(connection.peer_addr()),
            local_address: name(connection.local_addr()),
            since: now,
            outbox: Outbox::default(),
            last_seen: AtomicI64::new(now),
            last_command: AtomicU8::new(u8::MAX),
            changed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            facts: Mutex::default(),
        }
    }

    /// A key that it watches has changed.
    pub(crate) fn note_change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Whether a key has changed that it watched, since this was asked last.
    pub(crate) fn take_change(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// Gives it a message, and says whether it gets any. One that does not read them is ended.
    pub(crate) fn deliver(&self, message: &Message, wakers: &mut Vec<Waker>) -> bool {
        if self.is_ended() {
            return false;
        }
        match self.outbox.put(message, self.facts().resp3) {
            Ok(waker) => wakers.extend(waker),
            Err(TooMuch) => self.end(),
        }
        true
    }

    /// Ends its connection, and with it what the client has waiting. For the others it is gone at once.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.control.abort();
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_subscriber(&self) -> bool {
        let facts = self.facts();
        facts.channels + facts.patterns > 0
    }
}
