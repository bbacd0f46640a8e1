//! A TCP proxy that one could run. `proxy --help` and `docs/proxy.md` say what it does.

mod admin;
mod config;
mod flags;
mod handover;
mod header;
mod health;
mod log;
mod proxy;
mod sources;
mod tls;
mod upstream;

use std::env;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use duopoll::restart::{TakenOver, take_over};
use duopoll::{Address, Builder, Connection, EventLoop, Listener, Server, Service, WhenFull};
use listenfd::ListenFd;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{Config, Listen};
use crate::proxy::Proxy;

/// Why the process is to end.
pub(crate) enum Stop {
    Signal,
    HandedOver,
    /// It has ended, and so many connections were closed by force.
    Over(usize),
}

fn main() -> ExitCode {
    match flags::parse(env::args_os().skip(1)) {
        Ok(Some(config)) => match run(config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(1, &error.to_string()),
        },
        Ok(None) => {
            say(flags::HELP);
            ExitCode::SUCCESS
        }
        Err(error) => complain(2, &error.to_string()),
    }
}

fn run(mut config: Config) -> io::Result<()> {
    let _log = log::begin(config.log);
    // Before anything is served, so that no signal is missed.
    let (stop, stops) = channel();
    watch_signals(stop.clone())?;

    let mut last = match &config.handover {
        Some(path) => handover::last(path)?,
        None => None,
    };
    let (listeners, taken) = listeners(&mut config, last.as_mut())?;
    let proxy = Arc::new(Proxy::new(&config)?);
    let builder = builder(&config);
    let weak = builder.weak_server();
    let service = builder.on_connection({
        let proxy = proxy.clone();
        async move |client: Connection| {
            proxy.serve(client).await;
            Ok(())
        }
    });
    let server = serve(service, listeners)?;
    confirm(taken)?;
    health::begin(&proxy.upstreams, config.health, server.pollers());

    let mut servers = vec![weak.clone()];
    let mut admin = None;
    if let Some(address) = &config.admin {
        let builder = EventLoop::builder().on(server.pollers().clone());
        servers.push(builder.weak_server());
        let service = admin::service(builder, proxy.clone(), weak);
        let (listener, taken) = admin_listener(address, last.as_mut())?;
        admin = Some(serve(service, vec![listener])?);
        confirm(taken)?;
    }
    drop(last);
    if let Some(path) = &config.handover {
        handover::begin(path, server.pollers(), servers, stop.clone())?;
    }
    let report = server.engine_report();
    if let Some(reason) = &report.fallback {
        tracing::warn!("{reason}");
    }
    let addresses = server.local_addrs().iter().map(Address::to_string).collect::<Vec<_>>();
    let (addresses, pollers) = (addresses.join(" "), server.pollers().count());
    say(&format!("listening on {addresses} engine={} pollers={pollers}\n", report.engine));

    let reason = stops.recv().map_err(io::Error::other)?;
    let going = server.open_connections();
    let handed_over = matches!(reason, Stop::HandedOver);
    tracing::info!(connections = going, handed_over, "ends");
    let forced = end(&server, config.grace.0, stop, &stops);
    if forced > 0 {
        tracing::warn!(connections = forced, "closed by force");
    }
    if let Some(admin) = admin {
        admin.shutdown(Duration::ZERO);
    }
    Ok(())
}

/// What the pollers and the server are told.
fn builder(config: &Config) -> Builder {
    let mut builder = EventLoop::builder().engine(config.engine).pollers(config.pollers);
    if let Some(max) = config.max_connections {
        builder = builder.max_connections(max);
    }
    if let Some(mebibytes) = config.memory_budget_mib {
        let bytes = mebibytes.saturating_mul(1 << 20);
        builder = builder.memory_budget(bytes).when_full(WhenFull::Reset);
    }
    builder
}

fn serve(service: Service, listeners: Vec<Listener>) -> io::Result<Server> {
    let mut listeners = listeners.into_iter();
    let first = listeners.next().ok_or_else(|| io::Error::other("there is nowhere to listen"))?;
    let server = service.serve(first)?;
    for listener in listeners {
        server.listen(listener)?;
    }
    Ok(server)
}

/// Where to listen: what the last process has, what systemd has opened, and the rest is bound.
fn listeners(
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
            listeners.push(bind(&listen.address)?);
        }
    }
    Ok((listeners, taken))
}

fn bind(address: &Address) -> io::Result<Listener> {
    let stale = matches!(address, Address::Unix(_));
    Listener::options().take_over_stale(stale).bind(address)
}

/// That of the last process, or a new one.
fn admin_listener(
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
        None => Ok((bind(address)?, taken)),
    }
}

fn confirm(taken: Option<TakenOver>) -> io::Result<()> {
    taken.map_or(Ok(()), TakenOver::confirm)
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

fn watch_signals(stop: Sender<Stop>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            if stop.send(Stop::Signal).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}

/// Shuts the server down; a signal cuts the grace short. Returns how many connections were closed by force.
fn end(server: &Server, grace: Duration, stop: Sender<Stop>, stops: &Receiver<Stop>) -> usize {
    thread::scope(|scope| {
        scope.spawn(move || {
            let forced = server.shutdown(grace);
            let _ = stop.send(Stop::Over(forced));
        });
        let mut hurried = 0;
        loop {
            match stops.recv() {
                Ok(Stop::Signal) => hurried += server.shutdown(Duration::ZERO),
                Ok(Stop::HandedOver) => {}
                Ok(Stop::Over(forced)) => return forced + hurried,
                Err(_) => return hurried,
            }
        }
    })
}

/// Prints, for as long as anybody listens.
fn say(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn complain(code: u8, error: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(code)
}
