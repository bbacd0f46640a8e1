//! What of a dial can only block: resolving a name, and waiting for room in the backlog of a Unix socket. Each has a
//! thread of its own.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use socket2::{SockAddr, Socket};

use crate::address::Address;

/// How long a connect that blocks waits before it looks whether somebody still wants it to.
const UNIX_WAIT: Duration = Duration::from_millis(100);

/// The addresses of a name, the two families in turn, beginning with the resolver's first.
pub(crate) async fn resolve(name: String, deadline: Option<Instant>) -> io::Result<Vec<Address>> {
    let found: Vec<SocketAddr> =
        until(deadline, "duopoll-resolve", move || Ok(name.to_socket_addrs()?.collect())).await?;
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut mixed = Vec::with_capacity(first.len() + second.len());
    first.reverse();
    second.reverse();
    while let Some(address) = first.pop() {
        mixed.push(address.into());
        mixed.extend(second.pop().map(Address::from));
    }
    mixed.extend(second.into_iter().rev().map(Address::from));
    Ok(mixed)
}

/// Connects on a thread of its own, until the deadline or until nobody waits for it any more.
pub(crate) async fn connect_blocking(
    socket: Socket,
    remote: SockAddr,
    deadline: Instant,
) -> io::Result<OwnedFd> {
    on_a_thread("duopoll-connect", move |is_awaited| {
        socket.set_nonblocking(false)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would be none.
            let wait = left.clamp(Duration::from_millis(1), UNIX_WAIT);
            socket.set_write_timeout(Some(wait))?;
            match socket.connect(&remote) {
                Ok(()) => break,
                // There was no room in the meantime, or a signal came.
                Err(error) if is_temporary(&error) => {
                    if !is_awaited() || Instant::now() >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        socket.set_write_timeout(None)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    })
    .await
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Has a thread do something that blocks and that cannot be told to stop, and waits for it until the deadline.
async fn until<T: Send + 'static>(
    deadline: Option<Instant>,
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(deadline) = deadline else { return on_a_thread(name, |_| work()).await };
    let (reply, answer) = mpsc::channel();
    let work = move || drop(reply.send(work()));
    thread::Builder::new().name(name.into()).spawn(work)?;
    on_a_thread("duopoll-timeout", move |_| {
        let left = deadline.saturating_duration_since(Instant::now());
        answer.recv_timeout(left).unwrap_or_else(|error| match error {
            mpsc::RecvTimeoutError::Timeout => Err(io::ErrorKind::TimedOut.into()),
            mpsc::RecvTimeoutError::Disconnected => Err(panicked()),
        })
    })
    .await
}

/// Has a thread do something that blocks. It can ask whether somebody still waits for it.
fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&dyn Fn() -> bool) -> io::Result<T> + Send + 'static,
) -> impl Future<Output = io::Result<T>> {
    let (reply, answer) = oneshot::channel();
    let started = thread::Builder::new().name(name.into()).spawn(move || {
        let result = work(&|| !reply.is_canceled());
        let _ = reply.send(result);
    });
    async move {
        started?;
        answer.await.unwrap_or_else(|_| Err(panicked()))
    }
}

fn panicked() -> io::Error {
    io::Error::other("the thread has panicked")
}
