//! Names, and what they mean. The C library's resolver can only block, so it gets threads, a bounded number of them.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;

use async_lock::Semaphore;
use blocking::unblock;

use crate::address::Address;

/// Names that are resolved at once in a process, each on a thread. Others wait for their turn, and their dials' timeouts
/// count meanwhile.
const RESOLVERS_MAX: usize = 32;

/// Resolves a host's name; see [`Dialer::resolver`](crate::Dialer::resolver).
pub(crate) type Resolve = dyn Fn(String, u16) -> Resolving + Send + Sync;
pub(crate) type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The addresses of a host, as the C library knows them.
///
/// Dropping the future gives up. A resolution that has begun goes on, and keeps its thread until it is over.
pub(crate) async fn resolve(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    static TURNS: Semaphore = Semaphore::new(RESOLVERS_MAX);
    let turn = TURNS.acquire().await;
    unblock(move || {
        let found = (&*host, port).to_socket_addrs();
        drop(turn);
        // What the C library says has no errno, and no kind of std's.
        let found = found.map_err(|error| match error.raw_os_error() {
            None => io::Error::new(io::ErrorKind::NotFound, error),
            Some(_) => error,
        });
        Ok(found?.collect())
    })
    .await
}

/// The addresses in the order in which they are tried: the two families in turn, beginning with that of the first.
pub(crate) fn in_turn(found: Vec<SocketAddr>) -> Vec<Address> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut mixed = Vec::with_capacity(first.len() + second.len());
    let mut second = second.into_iter();
    for address in first {
        mixed.push(address.into());
        mixed.extend(second.next().map(Address::from));
    }
    mixed.extend(second.map(Address::from));
    mixed
}
