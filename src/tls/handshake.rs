//! What both sides of a handshake have in common.

use std::future::{Future, poll_fn};
use std::io;
use std::time::Duration;

use super::connection::TlsConnection;
use crate::time;

/// How long a handshake may take, if nothing else is said.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for a handshake, or a part of it, but not for ever.
pub(super) async fn within<T>(
    timeout: Option<Duration>,
    handshake: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let Some(timeout) = timeout else { return handshake.await };
    time::timeout(timeout, handshake).await.unwrap_or_else(|_| {
        let text = format!("the TLS handshake was not done within {timeout:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

pub(super) async fn finish(mut tls: TlsConnection) -> io::Result<TlsConnection> {
    poll_fn(|cx| tls.poll_handshake(cx)).await?;
    Ok(tls)
}
