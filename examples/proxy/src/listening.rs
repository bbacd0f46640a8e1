//! Where the proxy listens: at what others have opened, or at sockets of its own.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::restart::TakenOver;
use duopoll::{Address, Listener, ListenerOptions};
use listenfd::ListenFd;

use crate::config::{Config, Listen};

/// How long an address is waited for that somebody else has.
const LEAVING: Duration = Duration::from_secs(2);

/// The listeners for clients, and the one of the admin server. What the last process has comes first, then what systemd has opened, and the
/// rest is bound. Afterwards the configuration has the addresses as they are, with the ports that were chosen.
pub(crate) fn listeners(
    config: &mut Config,
    last: Option<&mut TakenOver>,
) -> io::Result<(Vec<Listener>, Option<Listener>)> {
    let mut there = last.map(TakenOver::listeners).unwrap_or_default();
    if config.systemd {
        for listener in of_systemd()? {
            let address = listener.local_addr()?;
            if !config.listen.iter().any(|listen| listen.address == address) {
                config.listen.push(Listen { address, accept_proxy: false, tls: None });
            }
            there.push(listener);
        }
    }
    // What is not listened at any more is left to whoever has opened it.
    let mut at = |address: &mut Address| {
        let is_there = |listener: &Listener| listener.local_addr().is_ok_and(|at| at == *address);
        let listener = match there.iter().position(is_there) {
            Some(index) => there.swap_remove(index),
            None => bind(Listener::options(), address)?,
        };
        *address = listener.local_addr()?;
        io::Result::Ok(listener)
    };
    let clients = config.listen.iter_mut().map(|listen| at(&mut listen.address));
    let clients = clients.collect::<io::Result<_>>()?;
    Ok((clients, config.admin.as_mut().map(at).transpose()?))
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

fn of_systemd() -> io::Result<Vec<Listener>> {
    let mut sockets = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..sockets.len() {
        if let Some(fd) = sockets.take_raw_fd(index)? {
            // SAFETY: it is what systemd has opened for this process, and was not taken before.
            listeners.push(Listener::try_from(unsafe { OwnedFd::from_raw_fd(fd) })?);
        }
    }
    Ok(listeners)
}
