//! A DNS resolver that one could run on a LAN: it asks others, and keeps what they answer. `dns --help` says what it does.
//!
//! The life of a query: [`udp`] or [`tcp`] receives it, [`query`] judges it, and the [`resolver`] finds it in the [`cache`], or has
//! it wait until an [`upstream`] has answered. The [`answer`] is kept as the bytes of a message, of which each client gets a copy
//! with its own number, letters and what is left of the time.

mod answer;
mod cache;
mod config;
mod flags;
mod listening;
mod query;
mod resolver;
mod sources;
mod stats;
mod tcp;
mod udp;
mod upstream;
#[path = "../../common/values.rs"]
mod values;

use std::env;
use std::io::{self, Write};
use std::panic;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use duopoll::task::TaskGroup;
use duopoll::{Address, Connection, EventLoop, Pollers, Server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::config::Config;
use crate::resolver::Resolver;

/// Connections over TCP at once; others wait.
const CONNECTIONS_MAX: usize = 1000;

fn main() -> ExitCode {
    match flags::parse(env::args_os().skip(1)) {
        Ok(Some(config)) => match run(&config) {
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

fn run(config: &Config) -> io::Result<()> {
    // Before anything is served, so that no signal is missed.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    allow_descriptors()?;
    let pollers = Pollers::options().engine(config.engine).count(config.pollers).start()?;
    let tasks = TaskGroup::new();
    let resolver = Arc::new(Resolver::new(config, tasks.clone()));
    let server = serve(config, &pollers, &resolver, &tasks)?;
    let report = server.engine_report();
    if let Some(reason) = &report.fallback {
        let _ = writeln!(io::stderr(), "{reason}");
    }
    let addresses = server.local_addrs().iter().map(Address::to_string).collect::<Vec<_>>();
    say(&format!(
        "listening on {} engine={} pollers={}\n",
        addresses.join(" "),
        report.engine,
        pollers.count()
    ));
    while signals.forever().next() == Some(SIGUSR1) {
        say(&format!("{}\n", resolver.stats));
    }
    end(&server, config.grace, &mut signals);
    say(&format!("{}\n", resolver.stats));
    Ok(())
}

/// Serves all addresses over UDP, and over TCP by the server.
fn serve(
    config: &Config,
    pollers: &Pollers,
    resolver: &Arc<Resolver>,
    tasks: &TaskGroup,
) -> io::Result<Server> {
    let listen = |address: &_| listening::listen(*address, pollers, resolver, tasks);
    let mut listeners = config.listen.iter().map(listen);
    let first = listeners.next().unwrap_or_else(|| unreachable!("there is a default"))?;
    let service = EventLoop::builder()
        .on(pollers.clone())
        .tasks(tasks)
        .max_connections(CONNECTIONS_MAX)
        .idle_timeout(config.idle_timeout)
        .write_timeout(config.idle_timeout)
        .on_connection({
            let (resolver, tasks) = (resolver.clone(), tasks.clone());
            async move |connection: Connection| {
                tcp::serve(connection, resolver.clone(), tasks.clone()).await
            }
        });
    let server = service.serve(first)?;
    for listener in listeners {
        server.listen(listener?)?;
    }
    Ok(server)
}

/// Every question to an upstream has a socket of its own.
fn allow_descriptors() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// Shuts the server down; another signal cuts the grace short.
fn end(server: &Server, grace: Duration, signals: &mut Signals) {
    let watch = signals.handle();
    thread::scope(|scope| {
        let hurry = scope.spawn(|| {
            if signals.forever().any(|signal| signal != SIGUSR1) {
                server.shutdown(Duration::ZERO);
            }
        });
        server.shutdown(grace);
        watch.close();
        hurry.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
    });
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
