//! Names, and the clients that each is of interest to: keys that are watched, channels, patterns of channels.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;

use crate::client::Client;
use crate::values::Text;

/// Who wants to hear of what. No name is kept that is of interest to nobody.
#[derive(Default)]
pub(crate) struct Interest(HashMap<Text, BTreeMap<u64, Arc<Client>>>);

impl Interest {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names that are of interest to anybody.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn add(&mut self, name: &[u8], client: &Arc<Client>) {
        let clients = self.0.entry(Text::from(name)).or_default();
        clients.insert(client.id, client.clone());
    }

    pub(crate) fn remove(&mut self, name: &[u8], client: &Client) {
        let EntryRef::Occupied(mut entry) = self.0.entry_ref(name) else { return };
        entry.get_mut().remove(&client.id);
        if entry.get().is_empty() {
            entry.remove();
        }
    }

    /// The clients that a name is of interest to, the oldest first.
    pub(crate) fn clients(&self, name: &[u8]) -> impl ExactSizeIterator<Item = &Arc<Client>> {
        static NOBODY: BTreeMap<u64, Arc<Client>> = BTreeMap::new();
        self.0.get(name).unwrap_or(&NOBODY).values()
    }

    /// All names, each with its clients.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Text, impl Iterator<Item = &Arc<Client>>)> {
        self.0.iter().map(|(name, clients)| (name, clients.values()))
    }
}
