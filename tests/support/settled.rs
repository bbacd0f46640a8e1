//! Figures that are up to date: what the pollers had done before is among them.

use duopoll::{Pollers, Server, Stats};

/// Not for a handler, which would wait for itself.
pub trait Settled {
    /// The figures, when every poller has published what it had done by now.
    fn settled(&self) -> Stats;

    /// The figures of each poller.
    fn settled_each(&self) -> Vec<Stats>;
}

impl Settled for Pollers {
    fn settled(&self) -> Stats {
        self.settle();
        self.stats()
    }

    fn settled_each(&self) -> Vec<Stats> {
        self.settle();
        self.stats_of_each()
    }
}

impl Settled for Server {
    fn settled(&self) -> Stats {
        self.pollers().settled()
    }

    fn settled_each(&self) -> Vec<Stats> {
        self.pollers().settled_each()
    }
}
