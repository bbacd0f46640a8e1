//! What the example servers have in common: their flags, their ready line, and their end.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use duopoll::{Address, Engine, Listener, Server};
use lexopt::prelude::*;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long connections may go on after the signal.
const GRACE: Duration = Duration::from_secs(5);

/// The flags.
pub(crate) struct Flags {
    listen: Address,
    /// Which engine.
    pub(crate) engine: Engine,
    /// How many pollers.
    pub(crate) pollers: usize,
    stats: bool,
}

impl Flags {
    /// A listener at the given address.
    pub(crate) fn listener(&self) -> io::Result<Listener> {
        Listener::bind(&self.listen).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {}: {error}", self.listen))
        })
    }
}

/// Runs a server until SIGINT or SIGTERM. Exits with 2 for a bad flag or address, with 1 for what the system refuses.
pub(crate) fn main(
    about: &str,
    default_listen: &str,
    serve: impl FnOnce(&Flags) -> io::Result<Server>,
) -> ExitCode {
    let flags = match parse(default_listen) {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            print!("{}", help(about, default_listen));
            return ExitCode::SUCCESS;
        }
        Err(error) => return complain(2, &error),
    };
    // Before the server starts, so that no signal is missed.
    let mut signals = match Signals::new([SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => return complain(1, &error),
    };
    let server = match serve(&flags) {
        Ok(server) => server,
        Err(error) => return complain(1, &error),
    };
    let report = server.engine_report();
    if let Some(reason) = &report.fallback {
        eprintln!("{reason}");
    }
    let (address, pollers) = (server.local_addr(), server.pollers());
    println!("listening on {address} engine={} pollers={pollers}", report.engine);

    signals.forever().next();
    let forced = server.shutdown(GRACE);
    if forced > 0 {
        eprintln!("{forced} connections were closed by force");
    }
    if flags.stats {
        println!("{}", server.stats());
    }
    ExitCode::SUCCESS
}

fn complain(code: u8, error: &dyn Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}

fn help(about: &str, default_listen: &str) -> String {
    format!(
        "{about}

Flags:
  --listen ADDRESS           HOST:PORT, unix:PATH or unix:@NAME (default: {default_listen})
  --engine auto|epoll|uring  auto takes io_uring where it works, else epoll (default: auto, or what the
                             environment variable DUOPOLL_ENGINE says)
  --pollers N                threads that serve connections (default: 1)
  --stats                    print the library's counters as one line of JSON at the end
  --help                     print this

Prints one line when it is ready. SIGINT and SIGTERM end it: connections may finish their requests for
{} seconds. Exit code 0 then, 1 if the system refuses something, 2 for a bad flag.
",
        GRACE.as_secs()
    )
}

/// The flags, or none if help was asked for.
fn parse(default_listen: &str) -> Result<Option<Flags>, lexopt::Error> {
    let mut listen = None;
    let mut flags =
        Flags { listen: Address::Unnamed, engine: Engine::Auto, pollers: 1, stats: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("listen") => listen = Some(parser.value()?.parse()?),
            Long("engine") => flags.engine = parser.value()?.parse()?,
            Long("pollers") => {
                flags.pollers = parser.value()?.parse()?;
                if !(1..=1024).contains(&flags.pollers) {
                    return Err("--pollers must be from 1 to 1024".into());
                }
            }
            Long("stats") => flags.stats = true,
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(arg.unexpected()),
        }
    }
    flags.listen = match listen {
        Some(address) => address,
        None => default_listen.parse().map_err(|error| lexopt::Error::Custom(Box::new(error)))?,
    };
    Ok(Some(flags))
}
