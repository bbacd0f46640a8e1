//! One server, one run.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::client::{Client, Stream};
use super::generator::{Moment, Run, Said};
use super::shape::Shape;
use super::{Options, Server, Start, nginx};
use crate::golang;
use crate::instructions;
use crate::interrupts;
use crate::load::Outcome;
use crate::plan::SETTLE_MS;
use crate::process::{self, ServerProcess};
use crate::sys;
use crate::trace::{self, Calls};

/// Where everything is.
#[derive(Clone)]
pub struct Place {
    /// This program, which servers are started as.
    pub program: PathBuf,
    /// Core of a server of one thread.
    pub server_core: usize,
    /// Core of a load generator of one thread.
    pub client_core: usize,
    /// Folder of the [certificate](super::certificate), and of files for the tools.
    pub folder: PathBuf,
    /// The Go servers, if they are built.
    pub go: Option<PathBuf>,
    /// Where callgrind writes to, if a server runs under it.
    pub callgrind: Option<PathBuf>,
}

impl Place {
    /// A server in a process of its own.
    pub fn start(&self, server: &Server, shape: &Shape) -> io::Result<(ServerProcess, Options)> {
        let listen = process::tcp_address()?;
        let options = Options {
            listen: listen.tcp()?,
            app: shape.ask.app(),
            http2: shape.http2,
            tls: shape.tls.then(|| self.folder.clone()),
            threads: shape.threads,
            pinned: false,
        };
        let command = match server.start {
            Start::Function(_) => {
                let mut command = Command::new(&self.program);
                command.args(["web", server.name, "--listen", &listen.to_string()]);
                command.args(["--app", options.app.name()]);
                command.args(["--threads", &options.threads.to_string()]);
                if let Some(folder) = &options.tls {
                    command.arg("--tls").arg(folder);
                }
                command
            }
            Start::Go => {
                let missing = || io::Error::other("the Go servers are not built");
                golang::web(self.go.as_deref().ok_or_else(missing)?, &options)
            }
            Start::Nginx => nginx::command(&self.folder, &options)?,
        };
        let core = self.core(shape, self.server_core);
        let command = instructions::under(command, self.callgrind.as_deref());
        Ok((ServerProcess::start(command, core, &listen)?, options))
    }

    fn core(&self, shape: &Shape, core: usize) -> Option<usize> {
        (shape.threads == 1).then_some(core)
    }

    /// A run of the load generator against it.
    pub fn run<'a>(&'a self, shape: &'a Shape, options: &Options) -> Run<'a> {
        let core = self.core(shape, self.client_core);
        Run { shape, addr: options.listen, folder: &self.folder, core }
    }
}

/// Starts a server, drives it, and says what it took.
pub fn measure(
    place: &Place,
    server: &Server,
    shape: &Shape,
    warm_ms: u64,
    measure_ms: u64,
) -> io::Result<Outcome> {
    let (process, options) = place.start(server, shape)?;
    let pid = process.pid();
    let rss_start_kib = process::rss_kib(pid)?;
    let tls = options.tls.as_deref();
    let client = Client::new(options.listen, tls)?;
    let mut outcome = if shape.silent {
        silent(pid, &client, shape, place.client_core)?
    } else {
        let run = place.run(shape, &options);
        let mut outcome = if shape.http2 {
            run.h2load_few()?;
            drive_http2(pid, &run, warm_ms, measure_ms)?
        } else {
            drive_http1(pid, &run, &client, warm_ms, measure_ms)?
        };
        outcome.rss_idle_kib = rss_start_kib;
        outcome.rss_busy_kib = process::rss_kib(pid)?;
        outcome
    };
    outcome.rss_start_kib = rss_start_kib;
    outcome.requests *= shape.ask.counts();
    Ok(outcome)
}

/// Counts the system calls of a server in a second.
pub fn count_calls(place: &Place, server: &Server, shape: &Shape) -> io::Result<Calls> {
    let (process, options) = place.start(server, shape)?;
    let run = place.run(shape, &options);
    trace::count(process.pid(), place.client_core, || {
        let said = if shape.http2 { run.h2load(0, 1000, |_, _| Ok(()))? } else { run.wrk(1)? };
        Ok(said.requests * shape.ask.counts())
    })
}

/// Drives a server for some time, ends it, and says how many requests it has answered.
pub fn requests(place: &Place, server: &Server, shape: &Shape, run_ms: u64) -> io::Result<u64> {
    let (process, options) = place.start(server, shape)?;
    let run = place.run(shape, &options);
    let said = match shape.http2 {
        true => run.h2load(0, run_ms, |_, _| Ok(()))?,
        false => run.wrk(run_ms.div_ceil(1000))?,
    };
    process.terminate()?;
    Ok(said.requests * shape.ask.counts())
}

/// The CPU clocks of a server, of the load generator and of the machine, in nanoseconds.
struct Clocks {
    server_ns: u64,
    client_ns: u64,
    now_ns: u64,
}

impl Clocks {
    fn read(server_pid: u32, client_ns: u64) -> io::Result<Clocks> {
        Ok(Clocks {
            server_ns: interrupts::server_cpu_time_ns(server_pid)?,
            client_ns,
            now_ns: sys::now_ns(),
        })
    }

    /// What was used since, in what the load generator took for its measured time.
    fn since(&self, before: &Clocks, said: &Said, is_all: bool) -> Outcome {
        let seconds = (self.now_ns - before.now_ns) as f64 / 1e9;
        // The clocks are read a moment after it has looked at its own, at either end.
        let scale = if is_all { 1.0 } else { said.seconds / seconds };
        let part = |now: u64, then: u64| (now.saturating_sub(then) as f64 * scale) as u64;
        let server_cpu_ns = part(self.server_ns, before.server_ns);
        let client_cpu_ns = part(self.client_ns, before.client_ns);
        Outcome {
            requests: said.requests,
            requests_in_all: said.requests,
            seconds: said.seconds,
            server_cpu_ns,
            client_cpu_ns,
            p50_us: said.p50_us,
            p99_us: said.p99_us,
            p999_us: said.p999_us,
            max_us: said.max_us,
            ..Outcome::default()
        }
    }
}

/// `wrk` tells no beginning of a measured part, so all of a run is measured, its connections included, after another one.
fn drive_http1(
    pid: u32,
    run: &Run<'_>,
    client: &Client,
    warm_ms: u64,
    measure_ms: u64,
) -> io::Result<Outcome> {
    let ask = run.shape.ask;
    let answer_bytes = client.connect()?.ask(ask, &ask.answer())? as u64;
    run.wrk(warm_ms.div_ceil(1000))?;
    let before = Clocks::read(pid, sys::children_cpu_time_ns()?)?;
    let mut said = run.wrk(measure_ms.div_ceil(1000))?;
    let after = Clocks::read(pid, sys::children_cpu_time_ns()?)?;
    check(&said)?;
    if run.shape.streams > 1 {
        // It times a burst, and then corrects that as if it were a request.
        said = Said { p50_us: f64::NAN, p99_us: f64::NAN, p999_us: f64::NAN, ..said };
    }
    // What has come of the answers that the end has cut off.
    let cut = (run.shape.connections * run.shape.streams) as u64 * answer_bytes;
    let whole = said.requests * answer_bytes;
    if said.bytes < whole || said.bytes > whole + cut {
        return Err(io::Error::other(format!(
            "{} answers of {answer_bytes} bytes had {} bytes",
            said.requests, said.bytes
        )));
    }
    Ok(after.since(&before, &said, true))
}

fn drive_http2(pid: u32, run: &Run<'_>, warm_ms: u64, measure_ms: u64) -> io::Result<Outcome> {
    let mut clocks = Vec::new();
    let said = run.h2load(warm_ms, measure_ms, |_: Moment, client_pid| {
        clocks.push(Clocks::read(pid, sys::cpu_time_ns(client_pid)?)?);
        Ok(())
    })?;
    check(&said)?;
    let wanted = said.requests * run.shape.ask.answer().len() as u64;
    if said.bytes < wanted {
        let text = format!("{} answers had {} bytes of bodies", said.requests, said.bytes);
        return Err(io::Error::other(text));
    }
    let [before, after] = &clocks[..] else {
        return Err(io::Error::other("h2load did not say when it began and ended"));
    };
    Ok(after.since(before, &said, false))
}

fn check(said: &Said) -> io::Result<()> {
    if said.errors > 0 || said.requests == 0 {
        return Err(io::Error::other(format!("not all went well: {said:?}")));
    }
    Ok(())
}

/// Between two connections that are opened to be idle, and how long they have been idle then.
const BETWEEN: Duration = Duration::from_millis(1);
const WHILE: Duration = Duration::from_millis(1_500);

/// Opens connections that ask once, a thousand a second, reads the memory when they have been idle for a while, closes them, and reads it
/// again. A request is a connection here.
fn silent(pid: u32, client: &Client, shape: &Shape, core: usize) -> io::Result<Outcome> {
    sys::raise_descriptor_limit()?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::pin_to_core(core)?;
            let right = shape.ask.answer();
            let before = Clocks::read(pid, sys::own_cpu_time_ns()?)?;
            let begun = Instant::now();
            let open = |index: usize| {
                let due = begun + index as u32 * BETWEEN;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let mut stream = client.connect()?;
                stream.ask(shape.ask, &right)?;
                Ok(stream)
            };
            let streams: Vec<Stream> =
                (0..shape.connections).map(open).collect::<io::Result<_>>()?;
            let after = Clocks::read(pid, sys::own_cpu_time_ns()?)?;
            let said = Said {
                requests: streams.len() as u64,
                seconds: (after.now_ns - before.now_ns) as f64 / 1e9,
                p50_us: f64::NAN,
                p99_us: f64::NAN,
                p999_us: f64::NAN,
                ..Said::default()
            };
            let mut outcome = after.since(&before, &said, true);
            std::thread::sleep(WHILE);
            outcome.rss_idle_kib = process::rss_kib(pid)?;
            outcome.rss_busy_kib = outcome.rss_idle_kib;
            streams.into_iter().try_for_each(Stream::close)?;
            std::thread::sleep(Duration::from_millis(SETTLE_MS));
            outcome.rss_settled_kib = Some(process::rss_kib(pid)?);
            Ok(outcome)
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the client panicked")))
    })
}
