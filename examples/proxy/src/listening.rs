//! Where the proxy listens: at what others have opened, or at sockets of its own.

use std::io;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::restart::{TakenOver, take_over};
use duopoll::{Address, Listener, ListenerOptions};
use listenfd::ListenFd;

use crate::config::{Config, Listen};

/// How long an address is waited for that somebody else has.
const LEAVING: Duration = Duration::from_secs(2);

/// Where to listen: what the last process has, what systemd has opened, and the rest is bound.
pub(crate) fn listeners(
    config: &mut Config,
    last: Option<&mut UnixStream>,
) -> io::Result<(Vec<Listener>, Option<TakenOver>)> {
    let mut listeners = Vec::new();
    if config.systemd {
        for listener in of_systemd()? {
            let address = listener.local_addr()?;
            if !config.listen.iter().any(|listen| listen.address == address) {
                config.listen.push(Listen { address, accept_proxy: false, tls: None });
            }
            listeners.push(listener);
        }
    }
    let mut taken = last.map(|last| take_over(last.try_clone()?)).transpose()?;
    for listener in taken.iter_mut().flat_map(TakenOver::listeners) {
        let address = listener.local_addr()?;
        // What is not listened at any more is left to the last process.
        if config.listen.iter().any(|listen| listen.address == address) {
            listeners.push(listener);
        }
    }
    for listen in &config.listen {
        let is_there = |listener: &Listener| {
            listener.local_addr().is_ok_and(|address| address == listen.address)
        };
        if !listeners.iter().any(is_there) {
            listeners.push(bind(Listener::options(), &listen.address)?);
        }
    }
    Ok((listeners, taken))
}

/// Binds, and waits a moment for whoever is about to leave: a process that has handed over, or one that was killed, behind which the
/// kernel takes its ring down.
pub(crate) fn bind(options: ListenerOptions, address: &Address) -> io::Result<Listener> {
    let options = options.take_over_stale(matches!(address, Address::Unix(_)));
    let begun = Instant::now();
    loop {
        match options.bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < LEAVING => {
                thread::sleep(LEAVING / 100);
            }
            bound => return bound,
        }
    }
}

/// That of the last process, or a new one.
pub(crate) fn one(
    address: &Address,
    last: Option<&mut UnixStream>,
) -> io::Result<(Listener, Option<TakenOver>)> {
    // The last process may have had none, and then it has ended the conversation.
    let taken = last.map(|last| take_over(last.try_clone()?)).transpose();
    let mut taken = match taken {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        taken => taken?,
    };
    let listeners = taken.as_mut().map(TakenOver::listeners).unwrap_or_default();
    let at = |listener: &Listener| listener.local_addr().is_ok_and(|at| at == *address);
    match listeners.into_iter().find(at) {
        Some(listener) => Ok((listener, taken)),
        None => Ok((bind(Listener::options(), address)?, taken)),
    }
}

fn of_systemd() -> io::Result<Vec<Listener>> {
    let mut sockets = ListenFd::from_env();
    (0..sockets.len())
        .map(|index| {
            // It looks what the socket is, and gives it back if it is something else.
            match sockets.take_unix_listener(index) {
                Ok(Some(listener)) => Ok(listener.into()),
                Ok(None) => Err(io::Error::other("a socket of systemd's was taken already")),
                Err(_) => match sockets.take_tcp_listener(index)? {
                    Some(listener) => Ok(listener.into()),
                    None => Err(io::Error::other("a socket of systemd's was taken already")),
                },
            }
        })
        .collect()
}
