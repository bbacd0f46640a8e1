//! The load generator of QUIC: quinn on tokio's current-thread runtime, a task for each stream that is under way.
//!
//! All connections are of one endpoint, so that a datagram costs this end as little as it can.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime};
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::config;
use super::service::{Failure, REQUEST_BYTES_MAX, chunks};
use super::shape::{Ask, PIECE_BYTES, Progress};
use crate::load::{Outcome, Window};
use crate::process;
use crate::sys;
use crate::udp;
use crate::web::certificate;

/// One run of the load generator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The server's address.
    pub target: SocketAddrV4,
    /// The folder of the server's certificate.
    pub certificate: PathBuf,
    /// The server's process, for its CPU clock and memory.
    pub server_pid: u32,
    /// What is asked.
    pub ask: Ask,
    /// Bytes of a stream.
    pub bytes: u64,
    /// Connections.
    pub connections: usize,
    /// Streams that a connection has under way.
    pub streams: usize,
    /// Time before the measured window, in milliseconds.
    pub warm_ms: u64,
    /// The measured window, in milliseconds.
    pub measure_ms: u64,
}

/// Runs a specification to its end.
pub fn run(spec: &Spec) -> io::Result<Outcome> {
    Builder::new_current_thread().enable_all().build()?.block_on(drive(spec))
}

async fn drive(spec: &Spec) -> io::Result<Outcome> {
    let rss_start_kib = process::rss_kib(spec.server_pid)?;
    let connections = connect(spec).await?;
    let rss_idle_kib = process::rss_kib(spec.server_pid)?;

    let mut started = Window::new(spec.server_pid, spec.warm_ms, spec.measure_ms)?;
    started.start(sys::now_ns());
    let clock = Arc::new(Mutex::new(started));
    let mut tasks = JoinSet::new();
    for connection in &connections {
        for _ in 0..spec.streams {
            tasks.spawn(ask(connection.clone(), spec.ask, spec.bytes, clock.clone()));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended?.map_err(io::Error::other)?;
    }

    let mut outcome = Outcome { rss_start_kib, rss_idle_kib, ..Outcome::default() };
    window(&clock).fill(&mut outcome);
    Ok(outcome)
}

async fn connect(spec: &Spec) -> io::Result<Vec<Connection>> {
    let socket = udp::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    let runtime = Arc::new(TokioRuntime);
    let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
    endpoint.set_default_client_config(config::client(&spec.certificate)?);
    let mut connections = Vec::with_capacity(spec.connections);
    for _ in 0..spec.connections {
        let connecting = endpoint.connect(spec.target.into(), certificate::NAME);
        connections.push(connecting.map_err(io::Error::other)?.await?);
    }
    Ok(connections)
}

/// Asks for one stream after the other until the window is over.
async fn ask(connection: Connection, ask: Ask, bytes: u64, clock: Clock) -> Result<(), Failure> {
    let request = vec![7; if ask == Ask::Echo { bytes as usize } else { 0 }];
    let mut lap = Lap { clock, since_ns: sys::now_ns() };
    loop {
        let stream = connection.open_bi().await?;
        let goes_on = match ask {
            Ask::Echo => echo(stream, &request, &mut lap).await?,
            Ask::Receive => upload(stream, bytes, &mut lap).await?,
            Ask::Send => download(stream, bytes, &mut lap).await?,
        };
        if !goes_on {
            return Ok(());
        }
    }
}

/// Says, as the next two, whether the window goes on.
async fn echo(
    (mut send, mut receive): (SendStream, RecvStream),
    request: &[u8],
    lap: &mut Lap,
) -> Result<bool, Failure> {
    send.write_all(request).await?;
    send.finish()?;
    if receive.read_to_end(REQUEST_BYTES_MAX).await? != request {
        return Err("the echo differs".into());
    }
    Ok(lap.count(1)?)
}

/// Counts what the server says that it has.
async fn upload(
    (mut send, mut receive): (SendStream, RecvStream),
    bytes: u64,
    lap: &mut Lap,
) -> Result<bool, Failure> {
    // If it fails, so does the reading.
    tokio::spawn(async move {
        for chunk in chunks(bytes) {
            send.write_chunk(chunk).await?;
        }
        Ok::<_, Failure>(send.finish()?)
    });
    let mut pieces = 0;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        let more = chunk.bytes.len() as u64;
        pieces += more;
        if !lap.count(more)? {
            return Ok(false);
        }
    }
    if pieces == bytes / PIECE_BYTES { Ok(true) } else { Err("not all came".into()) }
}

/// Counts what has come.
async fn download(
    (mut send, mut receive): (SendStream, RecvStream),
    bytes: u64,
    lap: &mut Lap,
) -> Result<bool, Failure> {
    send.write_all(&bytes.to_le_bytes()).await?;
    send.finish()?;
    let mut progress = Progress::default();
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        let pieces = progress.advance(chunk.bytes.len());
        if pieces > 0 && !lap.count(pieces)? {
            return Ok(false);
        }
    }
    if progress.bytes == bytes { Ok(true) } else { Err("not all came".into()) }
}

/// The window that all tasks share.
type Clock = Arc<Mutex<Window>>;

fn window(clock: &Clock) -> MutexGuard<'_, Window> {
    clock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one task counts in the window: a request begins where the last one ended.
struct Lap {
    clock: Clock,
    since_ns: u64,
}

impl Lap {
    /// Counts requests that have ended, and says whether the window goes on.
    fn count(&mut self, requests: u64) -> io::Result<bool> {
        let now_ns = sys::now_ns();
        let mut window = window(&self.clock);
        window.answered_together(now_ns, self.since_ns, requests);
        self.since_ns = now_ns;
        window.tick(now_ns)
    }
}
