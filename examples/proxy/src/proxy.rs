//! What is done for a client: from its first byte to the line in the log.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use duopoll::relay::{Broken, Duplex, Relay, Relayed, Side};
use duopoll::tls::TlsAcceptor;
use duopoll::{Address, Connection, Dialer, Limits, time};

use crate::config::{Config, Listen};
use crate::header::{self, Ends};
use crate::sources::{self, Sources};
use crate::upstream::{self, Upstream, Upstreams, dialer, is_own_shortage};
use crate::{admin, tls};

pub(crate) struct Proxy {
    entries: Vec<Entry>,
    pub(crate) upstreams: Arc<Upstreams>,
    dialer: Dialer,
    relay: Relay,
    sources: Sources,
    begin_timeout: Duration,
    connect_timeout: Duration,
    tries: usize,
    logs: bool,
    ends: AtomicBool,
    pub(crate) figures: Figures,
}

/// What is expected of the clients of a listener.
struct Entry {
    address: Address,
    accept_proxy: bool,
    tls: Option<TlsAcceptor>,
}

admin::figures! {
    /// What has happened to clients.
    Figures {
        "Clients that were let in"
        clients,
        "Clients that had reset before they were looked at"
        gone,
        "Clients that were refused since their address had as many connections as it may"
        refused_sources,
        "Clients that were refused since no upstream could be connected to"
        refused_upstreams,
        "Clients whose PROXY header was none, or too late"
        bad_headers,
        "Clients whose TLS handshake failed"
        failed_handshakes,
        "Upstreams that were tried after another one for the same client"
        retries,
        "Bytes from clients to upstreams, of connections that have ended"
        bytes_there,
        "Bytes from upstreams to clients, of connections that have ended"
        bytes_back,
        "Connections that a client has reset"
        client_resets,
        "Connections that an upstream has reset"
        upstream_resets,
        "Connections that were over time"
        timeouts,
        "Connections that this process has ended, for their memory or at the end of its grace"
        forced,
    }
}

/// Whether it was this process that has ended a connection.
fn is_ours(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::OutOfMemory)
}

/// Whether it was the other end, and not that nothing has moved.
fn is_fault(error: &io::Error) -> bool {
    !is_ours(error) && error.kind() != io::ErrorKind::TimedOut
}

/// What is told of a client in the log.
struct Story<'a> {
    begun: Instant,
    client: Option<SocketAddr>,
    /// Whom the PROXY header has named, or else the client.
    source: Option<SocketAddr>,
    entry: &'a Entry,
}

/// A client and its upstream.
struct Met<'a> {
    relaying: Pin<Box<dyn Future<Output = Relayed>>>,
    upstream: &'a Upstream,
    place: upstream::Place<'a>,
    story: Story<'a>,
    _admitted: sources::Place<'a>,
    connected: Duration,
}

/// After so long it is tried again to connect, if the process had no descriptor for it.
const SHORTAGE_RETRY: Duration = Duration::from_millis(10);

/// What waits in a connection of a relay, in each direction, in bytes.
const WAITS_BYTES_MAX: usize = 256 << 10;

/// What the connections on both sides may hold.
pub(crate) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.input_high_bytes = WAITS_BYTES_MAX;
    limits.output_high_bytes = WAITS_BYTES_MAX;
    limits
}

impl Proxy {
    pub(crate) fn new(config: &Config) -> io::Result<Proxy> {
        let entries = config.listen.iter().map(|listen| Entry::new(listen, config));
        let relay = Relay::new();
        let relay = relay.idle_timeout(config.idle_timeout.0).write_timeout(config.write_timeout.0);
        let upstreams = Upstreams::new(&config.upstream, config.balance, config.ejection);
        Ok(Proxy {
            entries: entries.collect::<io::Result<_>>()?,
            upstreams: Arc::new(upstreams),
            dialer: dialer(config.connect_timeout.0).limits(limits()),
            relay,
            sources: Sources::new(config.max_per_source),
            begin_timeout: config.begin_timeout.0,
            connect_timeout: config.connect_timeout.0,
            tries: config.tries,
            logs: config.log.access,
            ends: AtomicBool::new(false),
            figures: Figures::default(),
        })
    }

    /// Nobody is accepted any more.
    pub(crate) fn ends(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Serves a client to its end.
    pub(crate) fn serve(
        self: Arc<Self>,
        client: Connection,
    ) -> impl Future<Output = io::Result<()>> + use<> {
        // Thousands of these wait at a time: what they hold then is what is left when client and upstream have met.
        let client = Box::new(client);
        async move {
            let Some(met) = Box::pin(self.meet(client)).await else { return Ok(()) };
            let relayed = met.relaying.await;
            drop(met.place);
            self.ended(met.upstream, &relayed, &met.story, met.connected);
            Ok(())
        }
    }

    /// Finds an upstream for a client, if it is what is expected.
    async fn meet(&self, mut client: Box<Connection>) -> Option<Met<'_>> {
        self.figures.clients.add(1);
        // One that has reset before it was looked at has no address any more.
        let (Ok(peer), Ok(local)) = (client.peer_addr(), client.local_addr()) else {
            self.figures.gone.add(1);
            client.abort();
            return None;
        };
        // What is expected of it is not known otherwise, and may be TLS.
        let Some(entry) = self.entry(&local) else {
            tracing::error!(listener = %local, "a client of no listener");
            client.abort();
            return None;
        };
        let client_address = peer.tcp();
        let mut ends = client_address.zip(local.tcp());
        let mut story =
            Story { begun: Instant::now(), client: client_address, source: client_address, entry };
        if entry.accept_proxy {
            let read = time::timeout(self.begin_timeout, header::read(&mut client)).await;
            match read.map_err(io::Error::from).and_then(|read| read) {
                Ok(told) => ends = told.map(|told| (told.source, told.destination)).or(ends),
                Err(error) => {
                    self.figures.bad_headers.add(1);
                    self.refused(&story, "no PROXY header", Some(&error));
                    client.abort();
                    return None;
                }
            }
        }
        story.source = ends.map(|(source, _)| source);
        let Some(admitted) = self.sources.enter(story.source.map(|source| source.ip())) else {
            self.figures.refused_sources.add(1);
            self.refused(&story, "its address has too many connections", None);
            client.abort();
            return None;
        };
        let ends = ends.map(|(source, destination)| Ends { source, destination });
        match &entry.tls {
            None => self.join(*client, ends, story, admitted).await,
            Some(tls) => match tls.accept(*client).await {
                Ok(client) => self.join(client, ends, story, admitted).await,
                Err(error) => {
                    self.figures.failed_handshakes.add(1);
                    self.refused(&story, "no TLS", Some(&error));
                    None
                }
            },
        }
    }

    /// Connects a client to an upstream.
    async fn join<'a>(
        &'a self,
        client: impl Duplex + 'static,
        ends: Option<Ends>,
        story: Story<'a>,
        admitted: sources::Place<'a>,
    ) -> Option<Met<'a>> {
        let begun = Instant::now();
        let (mut tried, mut last) = (Vec::new(), None);
        loop {
            let chosen =
                if tried.len() < self.tries { self.upstreams.choose(&tried) } else { None };
            let Some(upstream) = chosen else { break };
            if !tried.is_empty() {
                self.figures.retries.add(1);
            }
            let place = upstream.enter();
            match self.connect(upstream, ends).await {
                Ok(connection) => {
                    upstream.connections.fetch_add(1, Ordering::Relaxed);
                    let (connected, relaying) =
                        (begun.elapsed(), self.relay.run(client, connection));
                    let relaying = Box::pin(relaying);
                    return Some(Met {
                        relaying,
                        upstream,
                        place,
                        story,
                        _admitted: admitted,
                        connected,
                    });
                }
                Err(error) if is_own_shortage(&error) => {
                    // The upstream is not to blame; others may end meanwhile.
                    last = Some(error);
                    if begun.elapsed() >= self.connect_timeout {
                        break;
                    }
                    time::sleep(SHORTAGE_RETRY).await;
                }
                Err(error) => {
                    tracing::debug!(upstream = %upstream.name, %error, "no connection");
                    self.upstreams.failed(upstream);
                    tried.push(upstream);
                    last = Some(error);
                }
            }
        }
        self.figures.refused_upstreams.add(1);
        self.refused(&story, "no upstream", last.as_ref());
        client.control().abort();
        None
    }

    async fn connect(&self, upstream: &Upstream, ends: Option<Ends>) -> io::Result<Connection> {
        let mut connection = upstream.dial(&self.dialer).await?;
        if let Some(version) = upstream.send_proxy {
            connection.write(&header::of(version, ends)?)?;
            connection.flush().await?;
        }
        Ok(connection)
    }

    /// Counts how it has ended, and logs it.
    fn ended(
        &self,
        upstream: &Upstream,
        relayed: &Relayed,
        story: &Story<'_>,
        connected: Duration,
    ) {
        let Relayed { there, back, result, .. } = relayed;
        self.figures.bytes_there.add(*there);
        self.figures.bytes_back.add(*back);
        let end = match result {
            Ok(()) => "ended",
            Err(Broken { error, .. }) if error.kind() == io::ErrorKind::TimedOut => {
                self.figures.timeouts.add(1);
                "over time"
            }
            Err(Broken { error, .. }) if is_ours(error) => {
                self.figures.forced.add(1);
                "ended by the proxy"
            }
            Err(Broken { side: Side::First, .. }) => {
                self.figures.client_resets.add(1);
                "reset by the client"
            }
            Err(Broken { side: Side::Second, .. }) => {
                self.figures.upstream_resets.add(1);
                "reset by the upstream"
            }
        };
        match result {
            Err(Broken { side: Side::Second, error, .. }) if *back == 0 && is_fault(error) => {
                self.upstreams.failed(upstream);
            }
            // Of one that has said nothing yet nothing is known.
            Err(_) if *back == 0 => {}
            _ => self.upstreams.succeeded(upstream),
        }
        if self.logs {
            tracing::info!(
                target: "access",
                client = text(story.client),
                source = text(story.source),
                listener = %story.entry.address,
                upstream = upstream.name,
                there,
                back,
                connect_ms = millis(connected),
                ms = millis(story.begun.elapsed()),
                end,
            );
        }
    }

    /// Logs a client that came to no upstream.
    fn refused(&self, story: &Story<'_>, end: &str, error: Option<&io::Error>) {
        if self.logs {
            tracing::info!(
                target: "access",
                client = text(story.client),
                source = text(story.source),
                listener = %story.entry.address,
                ms = millis(story.begun.elapsed()),
                error = error.map(tracing::field::display),
                end,
            );
        }
    }

    /// The listener that a client has come by.
    fn entry(&self, local: &Address) -> Option<&Entry> {
        let same = self.entries.iter().find(|entry| entry.address == *local);
        // One that listens at all addresses of a port, of the same family: one of IPv6 sees IPv4's as mapped.
        same.or_else(|| {
            let local = local.tcp()?;
            self.entries.iter().find(|entry| {
                entry.address.tcp().is_some_and(|at| {
                    at.ip().is_unspecified()
                        && at.port() == local.port()
                        && at.is_ipv4() == local.is_ipv4()
                })
            })
        })
    }
}

fn text(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "unix".into(), |address| address.to_string())
}

/// Milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

impl Entry {
    fn new(listen: &Listen, config: &Config) -> io::Result<Entry> {
        let tls = listen.tls.as_ref().map(|tls| tls::acceptor(tls, config.begin_timeout.0));
        Ok(Entry {
            address: listen.address.clone(),
            accept_proxy: listen.accept_proxy,
            tls: tls.transpose()?,
        })
    }
}

/// A figure that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        // Relaxed: each figure stands for itself.
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
