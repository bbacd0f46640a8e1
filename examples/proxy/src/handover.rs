//! Another process takes the listeners over, and this one goes on to its end.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

use duopoll::{Address, Connection, Listener, Pollers, WeakServer, restart, task, time};

use crate::listening;

/// How long either process waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);

/// The process that runs there, if one does.
pub(crate) fn last(path: &Path) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(path) {
        Ok(stream) => {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(Some(stream))
        }
        Err(error) if is_nobody(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Waits for the next process: hands the servers over to it, and says so.
pub(crate) fn begin(
    path: &Path,
    pollers: &Pollers,
    servers: Vec<WeakServer>,
    handed: Sender<crate::Stop>,
) -> io::Result<()> {
    let listener = listening::bind(Listener::options().mode(0o600), &Address::Unix(path.into()))?;
    let listener = listener.pollers(pollers.clone());
    drop(pollers.spawn(move || async move {
        loop {
            let next = match listener.accept().await {
                Ok(next) => next,
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                Err(error) => {
                    tracing::warn!(%error, "the next process cannot be accepted");
                    time::sleep(PATIENCE / 10).await;
                    continue;
                }
            };
            match hand_over(next, &servers).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, "the next process has not taken over"),
            }
        }
        // With it the file: the next one has its own.
        drop(listener);
        let _ = handed.send(crate::Stop::HandedOver);
    }));
    Ok(())
}

async fn hand_over(next: Connection, servers: &[WeakServer]) -> io::Result<()> {
    let (socket, _) = next.detach().await?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let servers: Vec<_> = servers.iter().filter_map(WeakServer::upgrade).collect();
    let handed = task::spawn_blocking(move || {
        servers.iter().try_for_each(|server| restart::hand_over(server, &stream))
    });
    handed.await.map_err(io::Error::from).and_then(|handed| handed)
}
