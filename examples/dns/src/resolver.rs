//! From a query to its answer: out of the cache, with those who ask the same, or from an upstream.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use domain::base::iana::Rcode;
use duopoll::task::TaskGroup;
use duopoll::time;
use futures_channel::oneshot;

use crate::answer::Answer;
use crate::cache::Cache;
use crate::config::Config;
use crate::query::{Judged, Key, Query, judge};
use crate::sources::Sources;
use crate::stats::Stats;
use crate::upstream::Upstreams;

/// Parts with a lock each.
const SHARDS: usize = 16;
/// A cache of less is in one part.
const SHARDED_FROM: usize = 1024;
/// Clients that may wait for upstreams at once.
const WAITING_MAX: usize = 1 << 14;

#[derive(Debug)]
pub(crate) struct Resolver {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    upstreams: Upstreams,
    sources: Sources,
    /// Questions that upstreams are being asked, and how many may be.
    asking: AtomicUsize,
    asking_max: usize,
    waiting: AtomicUsize,
    tasks: TaskGroup,
    pub(crate) stats: Arc<Stats>,
}

#[derive(Debug)]
struct Shard {
    cache: Cache,
    /// Who waits for what upstreams are being asked.
    flights: HashMap<Key, Vec<oneshot::Sender<Arc<Answer>>>>,
}

/// What comes of a message.
pub(crate) enum Outcome {
    Reply(Vec<u8>),
    /// Later.
    Waits(Waits),
    /// The source has asked too much. Over TCP that is told.
    Limited(Option<Query>),
    /// It is no query.
    Nothing,
}

/// A query whose answer is on its way.
pub(crate) struct Waits {
    query: Query,
    answer: oneshot::Receiver<Arc<Answer>>,
    resolver: Arc<Resolver>,
}

/// A question that upstreams are being asked. Whoever waits is told when it ends, however it does.
struct Flight {
    key: Key,
    answer: Option<Arc<Answer>>,
    resolver: Arc<Resolver>,
}

/// How long replies may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    fn bytes_max(self, query: &Query) -> usize {
        match self {
            Transport::Udp => query.udp_bytes_max(),
            Transport::Tcp => u16::MAX.into(),
        }
    }
}

impl Resolver {
    pub(crate) fn new(config: &Config, tasks: TaskGroup) -> Resolver {
        let stats = Arc::<Stats>::default();
        let shards = if config.cache >= SHARDED_FROM { SHARDS } else { 1 };
        let shard = |_| {
            let cache = Cache::new(config.cache / shards);
            Mutex::new(Shard { cache, flights: HashMap::new() })
        };
        Resolver {
            shards: (0..shards).map(shard).collect(),
            hasher: RandomState::new(),
            upstreams: Upstreams::new(config.upstream.clone(), config.timeout, stats.clone()),
            sources: Sources::new(config.max_per_source),
            asking: AtomicUsize::new(0),
            asking_max: config.max_outstanding,
            waiting: AtomicUsize::new(0),
            tasks,
            stats,
        }
    }

    /// On the thread of a poller.
    pub(crate) fn handle(
        self: &Arc<Resolver>,
        message: &[u8],
        source: IpAddr,
        transport: Transport,
    ) -> Outcome {
        let judged = judge(message);
        if matches!(judged, Judged::Nothing) {
            return Outcome::Nothing;
        }
        self.stats.queries.add(1);
        let now = time::now();
        if !self.sources.admit(source, now) {
            self.stats.limited.add(1);
            return Outcome::Limited(match judged {
                Judged::Query(query) => Some(query),
                _ => None,
            });
        }
        match judged {
            Judged::Query(query) => self.find(query, transport, now),
            Judged::Reply(reply) => Outcome::Reply(reply),
            Judged::Nothing => Outcome::Nothing,
        }
    }

    fn find(self: &Arc<Resolver>, query: Query, transport: Transport, now: Instant) -> Outcome {
        let mut shard = self.shard(&query.key);
        if let Some(answer) = shard.cache.get(&query.key, now) {
            drop(shard);
            self.stats.hits.add(1);
            return Outcome::Reply(answer.reply(&query, now, transport.bytes_max(&query)));
        }
        self.stats.misses.add(1);
        if !query.is_recursive() {
            return Outcome::Reply(query.error(Rcode::REFUSED));
        }
        let (tell, answer) = oneshot::channel();
        let joins = shard.flights.get_mut(&query.key);
        let (asking, waiting) = (&self.asking, &self.waiting);
        let has_room = take(waiting, WAITING_MAX);
        if !has_room || joins.is_none() && !take(asking, self.asking_max) {
            if has_room {
                waiting.fetch_sub(1, Ordering::Relaxed);
            }
            self.stats.busy.add(1);
            return Outcome::Reply(query.error(Rcode::SERVFAIL));
        }
        if let Some(others) = joins {
            others.push(tell);
            drop(shard);
            self.stats.joined.add(1);
        } else {
            shard.flights.insert(query.key.clone(), vec![tell]);
            drop(shard);
            let key = query.key.clone();
            let flight = Flight { key, answer: None, resolver: self.clone() };
            let query = query.clone();
            self.tasks.spawn_local(async move {
                let answer = flight.resolver.upstreams.ask(&query).await;
                flight.land(answer);
            });
        }
        Outcome::Waits(Waits { query, answer, resolver: self.clone() })
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(key) as usize;
        let shard = &self.shards[hash % self.shards.len()];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One more, unless there are as many as there may be.
fn take(count: &AtomicUsize, max: usize) -> bool {
    let more = |count| (count < max).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

impl Waits {
    /// The reply, when there is one.
    pub(crate) async fn reply(mut self, transport: Transport) -> Vec<u8> {
        match (&mut self.answer).await {
            Ok(answer) => answer.reply(&self.query, time::now(), transport.bytes_max(&self.query)),
            Err(oneshot::Canceled) => self.query.error(Rcode::SERVFAIL),
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.resolver.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Flight {
    fn land(mut self, answer: Option<Answer>) {
        self.answer = answer.map(Arc::new);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut shard = self.resolver.shard(&self.key);
        let waiting = shard.flights.remove(&self.key);
        if let Some(answer) = &self.answer {
            shard.cache.insert(&self.key, answer, time::now());
        }
        drop(shard);
        self.resolver.asking.fetch_sub(1, Ordering::Relaxed);
        // Those who are left without an answer learn that by the end of their channel.
        let Some(answer) = &self.answer else { return };
        for tell in waiting.into_iter().flatten() {
            let _ = tell.send(answer.clone());
        }
    }
}
