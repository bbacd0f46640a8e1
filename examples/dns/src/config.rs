//! What the resolver is told.

use std::net::SocketAddr;
use std::time::Duration;

use duopoll::Engine;

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) upstream: Vec<SocketAddr>,
    pub(crate) engine: Engine,
    pub(crate) pollers: usize,
    /// Answers that are kept.
    pub(crate) cache: usize,
    /// Queries per second.
    pub(crate) max_per_source: Option<u32>,
    /// Questions that upstreams are asked at once.
    pub(crate) max_outstanding: usize,
    /// How long one upstream has.
    pub(crate) timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) grace: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: Vec::new(),
            upstream: Vec::new(),
            engine: Engine::Auto,
            pollers: 1,
            cache: 10_000,
            max_per_source: None,
            max_outstanding: 1000,
            timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(10),
            grace: Duration::from_secs(5),
        }
    }
}
