//! What a connection is to its requests: who the client is, what it has said, and what it wants to hear of.

use std::sync::Arc;

use duopoll::Connection;

use crate::client::Client;
use crate::reply::{Error, error};
use crate::store::{SharedStore, Store};
use crate::transaction::Transaction;
use crate::values::{Set, Text};

/// What the names of one kind may take that a client watches or has subscribed to, in bytes.
const NAMES_BYTES_MAX: usize = 4 << 20;
/// What a name takes beside its bytes, here and in the table of all clients, as it is counted.
const NAME_BYTES: usize = 128;

const TOO_MANY_NAMES: Error =
    error("too many names: this client watches, or is subscribed to, as many as it may");

/// The state of a connection. Its end takes the client out of all that it is in.
pub(crate) struct Session {
    pub(crate) client: Arc<Client>,
    shared: Arc<SharedStore>,
    pub(crate) authenticated: bool,
    pub(crate) resp3: bool,
    pub(crate) replies: Replies,
    pub(crate) transaction: Option<Box<Transaction>>,
    /// EXEC runs. Messages from the client to itself come behind it.
    pub(crate) executes: bool,
    pub(crate) watched: Names,
    pub(crate) channels: Names,
    pub(crate) patterns: Names,
}

/// Whether the client wants to hear of what it asks for, as it has said by CLIENT REPLY.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replies {
    On,
    Off,
    /// Not of the next request.
    SkipNext,
    /// Not of this one.
    Skip,
}

impl Session {
    pub(crate) fn new(shared: &Arc<SharedStore>, connection: &Connection) -> Session {
        let mut store = shared.lock();
        let client = store.clients.enter(connection);
        store.stats.connections += 1;
        Session {
            client,
            shared: shared.clone(),
            authenticated: store.password.is_none(),
            resp3: false,
            replies: Replies::On,
            transaction: None,
            executes: false,
            watched: Names::default(),
            channels: Names::default(),
            patterns: Names::default(),
        }
    }

    /// Whether its requests are all run as they come: not for want of a password, nor within a transaction, nor while it may only
    /// listen.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.authenticated
            && self.transaction.is_none()
            && self.replies == Replies::On
            && (self.resp3 || !self.is_subscriber())
    }

    /// Whether messages may come for it.
    #[inline]
    pub(crate) fn is_subscriber(&self) -> bool {
        !(self.channels.is_empty() && self.patterns.is_empty())
    }

    /// Forgets the keys that it watches, and whether one has changed.
    pub(crate) fn unwatch(&mut self, store: &mut Store) {
        for key in self.watched.take() {
            store.watched.remove(&key, &self.client);
        }
        self.client.take_change();
    }

    /// Ends all subscriptions.
    pub(crate) fn unsubscribe(&mut self, store: &mut Store) {
        for channel in self.channels.take() {
            store.channels.remove(&channel, &self.client);
        }
        for pattern in self.patterns.take() {
            store.patterns.remove(&pattern, &self.client);
        }
    }

    /// Tells the others what they may see of it.
    pub(crate) fn publish_facts(&self) {
        let mut facts = self.client.facts();
        facts.resp3 = self.resp3;
        facts.channels = self.channels.len();
        facts.patterns = self.patterns.len();
        facts.queued = self.transaction.as_ref().map(|transaction| transaction.len());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let shared = self.shared.clone();
        let mut store = shared.lock();
        self.unwatch(&mut store);
        self.unsubscribe(&mut store);
        store.clients.leave(&self.client);
    }
}

/// Names of one kind, in the order in which they came.
#[derive(Default)]
pub(crate) struct Names {
    names: Set,
    bytes: usize,
}

impl Names {
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// # Errors
    /// If these would be too many.
    pub(crate) fn check_room<'a>(
        &self,
        names: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        let wanted: usize = names.map(|name| name.len() + NAME_BYTES).sum();
        if self.bytes + wanted > NAMES_BYTES_MAX { Err(TOO_MANY_NAMES) } else { Ok(()) }
    }

    /// Says whether it is new.
    pub(crate) fn insert(&mut self, name: &[u8]) -> bool {
        let new = self.names.insert(name, || Text::from(name), ());
        self.bytes += if new { name.len() + NAME_BYTES } else { 0 };
        new
    }

    /// Says whether it was there.
    pub(crate) fn remove(&mut self, name: &[u8]) -> bool {
        let was = self.names.remove(name);
        self.bytes -= if was { name.len() + NAME_BYTES } else { 0 };
        was
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Text> {
        self.names.iter().map(|(name, ())| name)
    }

    /// Takes them all out.
    pub(crate) fn take(&mut self) -> Vec<Text> {
        let Names { names, .. } = std::mem::take(self);
        names.into_names().collect()
    }
}
