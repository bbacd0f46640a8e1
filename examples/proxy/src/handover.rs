//! Another process takes the listeners over, and this one goes on to its end.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::restart::{TakenOver, hand_over, take_over};
use duopoll::task::{JoinHandle, TaskGroup, spawn_blocking};
use duopoll::{Address, Connection, Listener, Pollers, WeakServer, time};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::Stop;
use crate::listening;

/// How long either process waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether another process has taken over.
const LOOK: Duration = Duration::from_millis(100);

/// What the process hands over that runs there, if one does. One that ends just now is none, as is one that was killed, whose socket the
/// kernel keeps for a moment on io_uring.
pub(crate) fn last(path: &Path) -> io::Result<Option<TakenOver>> {
    let Some(stream) = connect(path).map_err(|error| named(path, &error))? else {
        return Ok(None);
    };
    match take_over(stream) {
        Ok(taken) => Ok(Some(taken)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(named(path, &error)),
    }
}

/// Connects, and does not wait for ever for room in a backlog.
fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    let address = SockAddr::unix(path)?;
    let begun = Instant::now();
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        match socket.connect(&address) {
            Ok(()) => {
                socket.set_nonblocking(false)?;
                return Ok(Some(patient(UnixStream::from(std::os::fd::OwnedFd::from(socket)))?));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < PATIENCE =>
            {
                thread::sleep(PATIENCE / 200);
            }
            Err(error) => return Err(error),
        }
    }
}

fn patient(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::WouldBlock => "whoever listens there does not answer".into(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("the handover at {}: {text}", path.display()))
}

/// Waits for the next process: hands the servers over to it, and says so. Nobody waits any more when this is aborted.
pub(crate) fn begin(
    path: &Path,
    pollers: &Pollers,
    servers: Vec<WeakServer>,
    handed_to: Sender<Stop>,
) -> io::Result<JoinHandle<()>> {
    let place = Address::Unix(path.to_owned());
    let listener = listening::bind(Listener::options().mode(0o600), &place)?;
    let listener = listener.pollers(pollers.clone());
    Ok(pollers.spawn(move || async move {
        let handed = Arc::new(AtomicBool::new(false));
        // Each by itself: one that says nothing does not hold up the next.
        let others = TaskGroup::new();
        while !handed.load(Ordering::Relaxed) {
            match time::timeout(LOOK, listener.accept()).await {
                Err(_) => {}
                Ok(Ok(next)) => {
                    let (servers, handed) = (servers.clone(), handed.clone());
                    others.spawn_local(async move {
                        match to(next, &servers).await {
                            Ok(()) => handed.store(true, Ordering::Relaxed),
                            // One that has only looked whether anybody is there, or has come second.
                            Err(error)
                                if matches!(
                                    error.kind(),
                                    io::ErrorKind::UnexpectedEof | io::ErrorKind::NotConnected
                                ) =>
                            {
                                tracing::debug!(%error, "the next process has not taken over");
                            }
                            Err(error) => {
                                tracing::warn!(%error, "the next process has not taken over");
                            }
                        }
                    });
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotConnected => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the next process cannot be accepted");
                    time::sleep(PATIENCE / 10).await;
                }
            }
        }
        // With it the file: the next one has its own.
        drop(listener);
        let _ = handed_to.send(Stop::HandedOver);
    }))
}

async fn to(next: Connection, servers: &[WeakServer]) -> io::Result<()> {
    let (socket, _) = next.detach().await?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    let stream = patient(stream)?;
    let servers: Vec<_> = servers.iter().filter_map(WeakServer::upgrade).collect();
    let handed = spawn_blocking(move || {
        let servers: Vec<_> = servers.iter().map(|server| &**server).collect();
        hand_over(&servers, &stream)
    });
    handed.await.map_err(io::Error::from).and_then(|handed| handed)
}
