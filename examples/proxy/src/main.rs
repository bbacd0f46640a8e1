//! A TCP proxy that one could run. `proxy --help` and `docs/proxy.md` say what it does.

mod admin;
mod config;
mod flags;
mod handover;
mod header;
mod health;
mod listening;
mod log;
mod proxy;
mod sources;
mod tls;
mod upstream;
#[path = "../../common/values.rs"]
mod values;

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use duopoll::restart::TakenOver;
use duopoll::{Address, Builder, Connection, EventLoop, Listener, Server, Service, WhenFull};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::Config;
use crate::proxy::Proxy;

/// How long questions to the admin server may take that were asked before another process has taken over.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Who asks more than a few at a time means no good.
const ADMIN_CONNECTIONS_MAX: usize = 32;

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
    let (clients, for_admin) = listening::listeners(&mut config, last.as_mut())?;
    let proxy = Arc::new(Proxy::new(&config)?);
    let builder = builder(&config);
    let mut servers = vec![builder.weak_server()];
    let service = builder.on_connection({
        let proxy = proxy.clone();
        // No async closure, which would keep the room of its argument.
        move |client: Connection| proxy.clone().serve(client)
    });
    let server = serve(service, clients)?;
    let mut admin = None;
    if let Some(listener) = for_admin {
        let builder = EventLoop::builder().on(server.pollers().clone());
        let builder = builder.max_connections(ADMIN_CONNECTIONS_MAX).limits(admin::limits());
        servers.push(builder.weak_server());
        let service = admin::service(builder, proxy.clone(), servers[0].clone());
        admin = Some(service.serve(listener)?);
    }
    // Last of all that can fail: from now on the other one goes, if it has not gone by itself.
    let took_over = last.is_some();
    last.map_or(Ok(()), TakenOver::confirm)?;
    health::begin(&proxy.upstreams, config.health, server.pollers());
    let next = config.handover.as_ref().and_then(|path| {
        match handover::begin(path, server.pollers(), servers, stop.clone()) {
            Ok(next) => Some(Ok(next)),
            // Another one has the place, which took over as well: it serves, and can be replaced.
            Err(error) if took_over && error.kind() == io::ErrorKind::AddrInUse => Some(Err(error)),
            Err(error) => {
                tracing::warn!(%error, "nobody can take over");
                None
            }
        }
    });
    let next = match next.transpose() {
        Ok(next) => next,
        Err(error) => {
            server.shutdown(config.grace.0);
            return Err(error);
        }
    };
    let report = server.engine_report();
    if let Some(reason) = &report.fallback {
        tracing::warn!("{reason}");
    }
    let addresses = server.local_addrs().iter().map(Address::to_string).collect::<Vec<_>>();
    let (addresses, pollers) = (addresses.join(" "), server.pollers().count());
    let at_admin = admin
        .as_ref()
        .map_or(String::new(), |admin: &Server| format!(" admin={}", admin.local_addr()));
    say(&format!(
        "listening on {addresses}{at_admin} engine={} pollers={pollers}\n",
        report.engine
    ));

    let reason = stops.recv().map_err(io::Error::other)?;
    let going = server.open_connections();
    let handed_over = matches!(reason, Stop::HandedOver);
    tracing::info!(connections = going, handed_over, "ends");
    // Whoever comes now shall find nobody, or whoever has taken over.
    if let Some(next) = next {
        next.abort();
    }
    match &admin {
        // Nobody shall be told by this one any more how it is; who has asked already is answered as before.
        Some(admin) if handed_over => {
            admin.shutdown(LAST_ANSWERS);
        }
        _ => {}
    }
    proxy.ends();
    let forced = end(&server, config.grace.0, stop, &stops);
    if forced > 0 {
        tracing::warn!(connections = forced, "closed by force");
    }
    Ok(())
}

/// What the pollers and the server are told.
fn builder(config: &Config) -> Builder {
    let builder = EventLoop::builder().engine(config.engine).pollers(config.pollers);
    let mut builder = builder.limits(proxy::limits());
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

fn watch_signals(stop: Sender<Stop>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
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
