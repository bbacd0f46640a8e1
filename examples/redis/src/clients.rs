//! All clients that are connected.

use std::collections::BTreeMap;
use std::sync::Arc;

use duopoll::Connection;

use crate::client::Client;

#[derive(Default)]
pub(crate) struct Clients {
    by_id: BTreeMap<u64, Arc<Client>>,
    last_id: u64,
}

impl Clients {
    pub(crate) fn enter(&mut self, connection: &Connection) -> Arc<Client> {
        self.last_id += 1;
        let client = Arc::new(Client::new(self.last_id, connection));
        self.by_id.insert(client.id, client.clone());
        client
    }

    pub(crate) fn leave(&mut self, client: &Client) {
        self.by_id.remove(&client.id);
    }

    /// Those that were not ended, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.by_id.values().filter(|client| !client.is_ended())
    }
}
