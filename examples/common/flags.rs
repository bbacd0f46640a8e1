//! What the example servers have in common: their flags, their ready line, and their end.

#[path = "metrics.rs"]
mod metrics;
#[path = "values.rs"]
mod values;

use std::fmt::Display;
use std::io::{self, Write};
use std::panic;
#[cfg(feature = "rustls")]
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use duopoll::{Address, Builder, Engine, EventLoop, Listener, Server, WhenFull};
use lexopt::prelude::*;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use values::{seconds, value};

/// How long connections may go on after the signal, if nothing else is said.
const GRACE: Duration = Duration::from_secs(5);

/// What is said of an example in its help.
pub(crate) struct Program {
    pub(crate) about: &'static str,
    /// Where it listens if nothing else is said.
    pub(crate) listen: &'static str,
    /// Whether it has `--tls`.
    pub(crate) tls: bool,
    /// Whether it has `--password`.
    pub(crate) password: bool,
}

/// The flags.
pub(crate) struct Flags {
    listen: Address,
    engine: Engine,
    pollers: usize,
    stats: bool,
    metrics: Option<Address>,
    /// What all builders begin with, so that there is one way to the server that comes of them.
    base: Builder,
    grace: Duration,
    idle_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    max_connections: Option<usize>,
    memory_budget: Option<usize>,
    password: Option<String>,
    #[cfg(feature = "zerocopy")]
    zerocopy: Option<usize>,
    #[cfg(feature = "rustls")]
    tls: Option<Tls>,
}

/// That it is to be TLS, and where the certificate goes.
#[cfg(feature = "rustls")]
#[derive(Default)]
struct Tls {
    certificate: Option<PathBuf>,
}

impl Flags {
    /// A server's options.
    pub(crate) fn builder(&self) -> Builder {
        let mut builder = self.base.clone().engine(self.engine).pollers(self.pollers);
        builder = builder.timings(self.metrics.is_some());
        if let Some(timeout) = self.idle_timeout {
            builder = builder.idle_timeout(timeout);
        }
        if let Some(timeout) = self.write_timeout {
            builder = builder.write_timeout(timeout);
        }
        if let Some(max) = self.max_connections {
            builder = builder.max_connections(max);
        }
        if let Some(bytes) = self.memory_budget {
            builder = builder.memory_budget(bytes).when_full(WhenFull::Reset);
        }
        #[cfg(feature = "zerocopy")]
        if let Some(bytes) = self.zerocopy {
            builder = builder.zerocopy(bytes);
        }
        builder
    }

    /// Whether it is to be TLS, and the file that the certificate goes to.
    #[cfg(feature = "rustls")]
    #[allow(dead_code, reason = "not every example has TLS")]
    pub(crate) fn tls(&self) -> Option<Option<&Path>> {
        self.tls.as_ref().map(|tls| tls.certificate.as_deref())
    }

    /// What clients have to say before anything else.
    #[allow(dead_code, reason = "not every example asks for one")]
    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Whether any port will do.
    #[allow(dead_code, reason = "not every example needs two of one number")]
    pub(crate) fn any_port(&self) -> bool {
        matches!(&self.listen, Address::Tcp(address) if address.port() == 0)
    }

    /// A listener at the given address.
    pub(crate) fn listener(&self) -> io::Result<Listener> {
        Listener::bind(&self.listen)
    }

    /// A listener for whoever asks for figures, if they are to be told.
    fn metrics_listener(&self) -> io::Result<Option<Listener>> {
        self.metrics.as_ref().map(Listener::bind).transpose()
    }

    /// Tells the figures of this server.
    fn serve_metrics(&self, listener: Listener, server: &Server) -> io::Result<Server> {
        metrics::serve(listener, server.pollers(), self.base.weak_server())
    }
}

/// Runs a server until SIGINT or SIGTERM. Exits with 2 for a bad flag or address, with 1 for what the system refuses.
pub(crate) fn main(
    program: &Program,
    serve: impl FnOnce(&Flags) -> io::Result<Server>,
) -> ExitCode {
    let flags = match parse(program) {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            say(&help(program));
            return ExitCode::SUCCESS;
        }
        Err(error) => return complain(2, &error),
    };
    // Before the server starts, so that no signal is missed.
    let mut signals = match Signals::new([SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => return complain(1, &error),
    };
    let begun = flags.metrics_listener().and_then(|listener| {
        let server = serve(&flags)?;
        let metrics = listener.map(|listener| flags.serve_metrics(listener, &server));
        Ok((server, metrics.transpose()?))
    });
    let (server, metrics) = match begun {
        Ok(begun) => begun,
        Err(error) => return complain(1, &error),
    };
    let report = server.engine_report();
    if let Some(reason) = &report.fallback {
        complain(0, reason);
    }
    let (address, pollers) = (server.local_addr(), server.pollers().count());
    let at_metrics = metrics
        .as_ref()
        .map_or(String::new(), |metrics| format!(" metrics={}", metrics.local_addr()));
    say(&format!(
        "listening on {address}{at_metrics} engine={} pollers={pollers}\n",
        report.engine
    ));

    signals.forever().next();
    // First, and not waited for: whoever reads figures and takes his time shall not hold up the end of the pollers.
    let metrics = metrics.map(|metrics| (metrics.shutdown_async(Duration::ZERO), metrics));
    let forced = end(&server, flags.grace, &mut signals);
    drop(metrics);
    if forced > 0 {
        complain(0, &format!("{forced} connections were closed by force"));
    }
    if flags.stats {
        say(&format!("{}\n", server.stats()));
    }
    ExitCode::SUCCESS
}

/// Shuts the server down; another signal cuts the grace short.
fn end(server: &Server, grace: Duration, signals: &mut Signals) -> usize {
    let watch = signals.handle();
    thread::scope(|scope| {
        let hurry = scope.spawn(|| match signals.forever().next() {
            Some(_) => server.shutdown(Duration::ZERO),
            None => 0,
        });
        let forced = server.shutdown(grace);
        watch.close();
        let hurried = hurry.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        forced + hurried
    })
}

/// Prints, for as long as anybody listens: what else is there to do is done all the same.
fn say(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn complain(code: u8, error: &dyn Display) -> ExitCode {
    let label = if code == 0 { "" } else { "error: " };
    let _ = writeln!(io::stderr(), "{label}{error}");
    ExitCode::from(code)
}

fn help(program: &Program) -> String {
    let Program { about, listen, tls, password } = program;
    let password = if *password { HELP_FOR_PASSWORD } else { "" };
    let tls = if *tls { HELP_FOR_TLS } else { "" };
    format!(
        "{about}

Flags:
  --listen ADDRESS           HOST:PORT, unix:PATH or unix:@NAME (default: {listen})
  --engine auto|epoll|uring  auto takes io_uring where it works, else epoll (default: auto, or what the
                             environment variable DUOPOLL_ENGINE says)
  --pollers N                threads that serve connections (default: 1)
  --grace SECONDS            how long connections may go on after a signal (default: {})
  --idle-timeout SECONDS     end connections on which nothing moves for so long (default: never)
  --write-timeout SECONDS    end connections whose peer reads nothing for so long (default: never)
  --max-connections N        connections open at once; others wait (default: no limit)
  --memory-budget MIB        what connections may hold in memory together; those whose peers do not read are
                             reset when it is used up (default: half of the memory there is)
  --zerocopy BYTES           send pieces from so many bytes on without a copy (default: none); needs a build with
                             --features zerocopy
{tls}{password}  --metrics ADDRESS          serve figures there by HTTP: /metrics for Prometheus, /connections as JSON (default: none). For
                             whoever operates the server: it says who is connected
  --stats                    print the library's counters as one line of JSON at the end
  --help                     print this

Seconds may have a fraction. Prints one line when it is ready. SIGINT and SIGTERM end it gracefully. Exit code 0 then, 1 if the system refuses something, 2 for a bad flag.
",
        GRACE.as_secs()
    )
}

const HELP_FOR_TLS: &str = "  --tls                      TLS, with a certificate for localhost that is made now; needs a build with
                             --features rustls-ring
  --tls-certificate FILE     the same, and put the certificate there
";

const HELP_FOR_PASSWORD: &str =
    "  --password PASSWORD        clients have to say it before anything else (default: none)
";

/// The flags, or none if help was asked for.
fn parse(program: &Program) -> Result<Option<Flags>, lexopt::Error> {
    let mut flags = Flags {
        listen: Address::Unnamed,
        engine: Engine::Auto,
        pollers: 1,
        stats: false,
        metrics: None,
        base: EventLoop::builder(),
        grace: GRACE,
        idle_timeout: None,
        write_timeout: None,
        max_connections: None,
        memory_budget: None,
        password: None,
        #[cfg(feature = "zerocopy")]
        zerocopy: None,
        #[cfg(feature = "rustls")]
        tls: None,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let Long(name) = arg else {
            match arg {
                Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        };
        let name = name.to_owned();
        match &*name {
            "help" => return Ok(None),
            "stats" => flags.stats = true,
            "tls" | "tls-certificate" if program.tls => set_tls(&mut flags, &name, &mut parser)?,
            "password" if program.password => flags.password = Some(parser.value()?.string()?),
            _ => set(&mut flags, &name, &mut parser)?,
        }
    }
    if flags.listen == Address::Unnamed {
        flags.listen = program.listen.parse().map_err(|error: io::Error| error.to_string())?;
    }
    Ok(Some(flags))
}

#[cfg(feature = "rustls")]
fn set_tls(
    flags: &mut Flags,
    name: &str,
    parser: &mut lexopt::Parser,
) -> Result<(), lexopt::Error> {
    let tls = flags.tls.get_or_insert_default();
    if name == "tls-certificate" {
        tls.certificate = Some(parser.value()?.into());
    }
    Ok(())
}

#[cfg(not(feature = "rustls"))]
fn set_tls(_: &mut Flags, name: &str, _: &mut lexopt::Parser) -> Result<(), lexopt::Error> {
    Err(format!("--{name} needs a build with the feature: --features rustls-ring").into())
}

/// Sets what a flag with a value says.
fn set(flags: &mut Flags, name: &str, parser: &mut lexopt::Parser) -> Result<(), lexopt::Error> {
    match name {
        "listen" => flags.listen = value(name, parser)?,
        "engine" => flags.engine = value(name, parser)?,
        "metrics" => flags.metrics = Some(value(name, parser)?),
        "pollers" => {
            flags.pollers = value(name, parser)?;
            if !(1..=1024).contains(&flags.pollers) {
                return Err("--pollers must be from 1 to 1024".into());
            }
        }
        #[cfg(feature = "zerocopy")]
        "zerocopy" => flags.zerocopy = Some(value(name, parser)?),
        #[cfg(not(feature = "zerocopy"))]
        "zerocopy" => {
            return Err("--zerocopy needs a build with the feature: --features zerocopy".into());
        }
        "grace" => flags.grace = seconds(name, parser)?,
        "idle-timeout" => flags.idle_timeout = Some(seconds(name, parser)?),
        "write-timeout" => flags.write_timeout = Some(seconds(name, parser)?),
        "memory-budget" => {
            let mebibytes: usize = value(name, parser)?;
            let bytes = mebibytes.checked_mul(1 << 20).filter(|bytes| *bytes > 0);
            flags.memory_budget = Some(bytes.ok_or("--memory-budget must be at least 1")?);
        }
        "max-connections" => {
            let max = value(name, parser)?;
            if max == 0 {
                return Err("--max-connections must be at least 1".into());
            }
            flags.max_connections = Some(max);
        }
        _ => return Err(format!("invalid option '--{name}'").into()),
    }
    Ok(())
}
