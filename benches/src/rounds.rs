//! Runs a plan: every server of a scenario once a round, round after round.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::address::Address;
use crate::awake::Awake;
use crate::disturbance::Watch;
use crate::golang;
use crate::instructions;
use crate::load::{Mode, Outcome, Spec};
use crate::plan::{SETTLE_MS, Step};
use crate::process::{self, ServerProcess};
use crate::proxy;
use crate::report::{self, Report, Row, Sample, Table};
use crate::resp::{self, RespServer};
use crate::revision::Revision;
use crate::scenario::{Pace, Shape, Work};
use crate::servers::{self, Options, Role, Server, Start};
use crate::trace::{self, Calls};
use crate::udp;
use crate::web;
use crate::web::shape::Shape as WebShape;

#[cfg(feature = "quic")]
mod quic;

/// The server that every ratio, and the peak of an open loop, refers to.
pub const YARDSTICK: &str = "classic";

/// The warm-up of a run whose instructions are counted, in milliseconds.
const WARM_MS: u64 = 300;

/// How long a datagram may be under way.
const LOST_AFTER_MS: u64 = 500;

/// What holds for the whole run.
pub struct Settings {
    /// Core of the servers.
    pub server_core: usize,
    /// Core of the load generator and of strace.
    pub client_core: usize,
    /// Whether system calls are counted.
    pub trace: bool,
    /// The servers of the RESP scenarios.
    pub resp_servers: Vec<RespServer>,
    /// Folder for the results.
    pub out: PathBuf,
    /// The command line, for the report.
    pub command: String,
    /// Whether what the folder has already is not measured again.
    pub resume: bool,
    /// Whether instructions are counted.
    pub instructions: bool,
    /// The revision that this project's servers are compared with.
    pub against: Option<Revision>,
}

/// Runs the steps; the results are written after each.
pub fn run(steps: &[Step], settings: &Settings) -> io::Result<()> {
    let mut runner = Runner::new(steps, settings)?;
    let awake = Awake::keep();
    if let Err(error) = &awake {
        runner.note(Awake::missing(error));
    }
    for step in steps {
        if runner.report.tables.iter().any(|table| table.is_of(step)) {
            continue;
        }
        let table = match step.scenario.work {
            Work::Load(ref shape) => runner.load_step(step, shape),
            Work::Resp { command, pipeline } => runner.resp_step(step, command, pipeline),
            Work::Web(ref shape) => runner.web_step(step, shape),
            Work::Proxy { ref shape, threads } => runner.proxy_step(step, shape, threads),
            Work::Udp(ref shape) => runner.udp_step(step, shape),
            Work::Quic(ref shape) => runner.quic_step(step, shape),
        };
        runner.progress.clear();
        if let Some(table) = table {
            print!("{}", report::text::table(&table));
            runner.report.add(table);
            runner.report.seconds += runner.progress.lap();
            report::write(&runner.report, &settings.out)?;
        }
    }
    for note in &runner.report.notes {
        println!("note: {note}");
    }
    println!("written to {}", settings.out.display());
    Ok(())
}

struct Runner<'a> {
    settings: &'a Settings,
    go: Option<PathBuf>,
    resp_servers: Vec<&'a RespServer>,
    trace: bool,
    report: Report,
    progress: Progress,
    /// Requests a second of a yardstick, by what was measured, for the open loops.
    peaks: HashMap<String, f64>,
    /// The folder of the certificate, made when the first server needs it.
    certificate: Option<PathBuf>,
    /// The server that is started now is that of the other revision.
    older: bool,
    /// Where callgrind writes to, if the server that is started now runs under it.
    callgrind: Option<PathBuf>,
}

impl<'a> Runner<'a> {
    fn new(steps: &[Step], settings: &'a Settings) -> io::Result<Self> {
        let mut notes = Vec::new();
        let cores = std::thread::available_parallelism()?.get();
        if cores < 2 || settings.server_core == settings.client_core {
            notes.push("server and client share a core: latencies mean little".to_owned());
        }
        let is_go = |step: &Step| {
            step.servers.iter().any(|server| matches!(server.start, Start::Go(_)))
                || step.web_servers.iter().any(|server| matches!(server.start, web::Start::Go))
                || step.udp_servers.iter().any(|server| matches!(server.start, udp::Start::Go))
        };
        let mut go = None;
        if steps.iter().any(is_go) {
            match golang::build() {
                Ok(executable) => go = Some(executable),
                Err(note) => notes.push(note),
            }
        }
        let is_resp = |step: &Step| matches!(step.scenario.work, Work::Resp { .. });
        let mut resp_servers = Vec::new();
        if steps.iter().any(is_resp) {
            match resp::available() {
                Ok(()) => {
                    resp_servers.extend(&settings.resp_servers);
                    // Without it, its program is missed below.
                    notes.extend(resp::build_example().err());
                }
                Err(note) => notes.push(note),
            }
            resp_servers.retain(|server| {
                let program = &server.words[0];
                let found = process::have(program);
                if !found {
                    notes.push(format!("`{program}` not found: {} is left out", server.name));
                }
                found
            });
        }
        let proxies = || steps.iter().flat_map(|step| &step.proxies);
        if proxies().any(|proxy| matches!(proxy.start, proxy::Start::Ours(_))) {
            // Without it, its runs fail and say so.
            notes.extend(
                process::build("the proxy", &["--release", "--package", "duopoll-proxy"]).err(),
            );
        }
        if settings.instructions {
            notes.extend(instructions::available().err());
            if !steps.iter().all(|step| matches!(step.scenario.work, Work::Load(_) | Work::Web(_)))
            {
                notes.push("instructions are counted of echo and of the web only".to_owned());
            }
        }
        let mut trace = settings.trace && steps.iter().any(|step| step.trace);
        if trace && let Err(note) = trace::available() {
            notes.push(note);
            trace = false;
        }
        let mut report = Report::new(settings.command.clone(), notes);
        if settings.resume {
            report.go_on_from(Report::read(&settings.out)?);
        }
        let is_done = |step: &Step| report.tables.iter().any(|table| table.is_of(step));
        let left = || steps.iter().filter(|step| !is_done(step));
        let cells = left().map(|step| step.cells(resp_servers.len())).sum();
        let estimate = left().map(|step| step.estimate(resp_servers.len())).sum();
        Ok(Runner {
            settings,
            go,
            resp_servers,
            trace,
            report,
            progress: Progress::new(cells, estimate),
            peaks: HashMap::new(),
            certificate: None,
            older: false,
            callgrind: None,
        })
    }

    /// Every server that takes part, once a round, round after round. Rounds that were disturbed are run again, as many in all as
    /// there are, and the calmer run of each is kept.
    fn measure(
        &mut self,
        step: &Step,
        yardstick: &str,
        rows: &mut [Row],
        takes_part: impl Fn(usize, usize) -> bool,
        mut measure: impl FnMut(&mut Self, usize) -> io::Result<Sample>,
    ) {
        for round in 0..step.rounds {
            self.round(step, rows, (round, ""), &takes_part, &mut measure);
        }
        if !rows.iter().any(|row| row.server == yardstick) {
            let name = &step.scenario.name;
            self.note(format!("{name}: without its yardstick, {yardstick}, there are no ratios"));
        }
        for _ in 0..step.rounds {
            let disturbed = report::disturbed(rows, yardstick).into_iter();
            let Some((round, much)) = disturbed.max_by(|a, b| a.1.total_cmp(&b.1)) else { break };
            let kept: Vec<Option<Sample>> =
                rows.iter_mut().map(|row| row.samples[round].take()).collect();
            let runs = (0..rows.len()).filter(|index| takes_part(*index, round)).count();
            self.progress.more(runs, step.cell_time());
            self.round(step, rows, (round, ", again: disturbed"), &takes_part, &mut measure);
            let again = report::disturbed(rows, yardstick);
            let is_calmer = again.iter().all(|(other, as_much)| *other != round || *as_much < much);
            let complete = rows
                .iter()
                .zip(&kept)
                .all(|(row, kept)| row.samples[round].is_some() || kept.is_none());
            if !is_calmer || !complete {
                rows.iter_mut().zip(kept).for_each(|(row, sample)| row.samples[round] = sample);
            }
        }
    }

    /// Who takes part, with a row for each, and this project's servers of the other revision beside them.
    fn entrants<S: Copy>(&self, servers: &[S], row: impl Fn(S) -> Row) -> (Vec<S>, Vec<Row>) {
        let mut entrants = Vec::new();
        for server in servers {
            let own = row(*server);
            let older = self.settings.against.as_ref().filter(|_| own.role == Role::Ours);
            let older = older.map(|revision| (*server, own.of_revision(&revision.name)));
            entrants.extend([Some((*server, own)), older].into_iter().flatten());
        }
        entrants.into_iter().unzip()
    }

    /// The program that servers are started as.
    fn program(&self) -> io::Result<PathBuf> {
        match &self.settings.against {
            Some(revision) if self.older => Ok(revision.program("compare")),
            _ => std::env::current_exe(),
        }
    }

    fn round(
        &mut self,
        step: &Step,
        rows: &mut [Row],
        (round, why): (usize, &str),
        takes_part: &impl Fn(usize, usize) -> bool,
        measure: &mut impl FnMut(&mut Self, usize) -> io::Result<Sample>,
    ) {
        let name = &step.scenario.name;
        for (index, row) in rows.iter_mut().enumerate() {
            if !takes_part(index, round) {
                continue;
            }
            let what = format!("{name} round {}/{}{why}", round + 1, step.rounds);
            self.progress.cell(&what, &row.server, index == 0);
            self.older = row.older.is_some();
            let sample = Watch::start().and_then(|watch| {
                let sample = measure(self, index)?;
                Ok(Sample { disturbance: watch.stop()?, ..sample })
            });
            match sample {
                Ok(sample) => row.samples[round] = Some(sample),
                Err(error) => {
                    self.note(format!("{name}, {}, round {}: {error}", row.server, round + 1));
                }
            }
        }
    }

    /// Counts the system calls of every server, if the step wants them.
    fn count_calls(
        &mut self,
        step: &Step,
        rows: &mut [Row],
        mut count: impl FnMut(&mut Self, usize) -> io::Result<Calls>,
    ) {
        if !step.trace || !self.trace {
            return;
        }
        let name = &step.scenario.name;
        for (index, row) in rows.iter_mut().enumerate() {
            self.progress.trace(name, &row.server);
            self.older = row.older.is_some();
            match count(self, index) {
                Ok(calls) => row.calls = Some(calls),
                Err(error) => {
                    self.note(format!("{name}, {}, system calls: {error}", row.server));
                }
            }
        }
    }

    /// Counts the instructions of this project's servers and of the yardstick, if that is wanted, but of none on io_uring. `run` ends the
    /// server, too.
    fn count_instructions(
        &mut self,
        step: &Step,
        rows: &mut [Row],
        mut run: impl FnMut(&mut Self, usize, u64) -> io::Result<u64>,
    ) {
        if !self.settings.instructions {
            return;
        }
        let name = &step.scenario.name;
        let counts = |row: &&mut Row| {
            matches!(row.role, Role::Ours | Role::Yardstick) && instructions::countable(&row.server)
        };
        for (index, row) in rows.iter_mut().enumerate().filter(|(_, row)| counts(row)) {
            self.progress.trace(name, &row.server);
            self.older = row.older.is_some();
            let counted = (|| {
                let file = resp::scratch_folder()?.join("callgrind.out");
                self.callgrind = Some(file.clone());
                let mut runs = [(0, 0); 2];
                for (counted, run_ms) in runs.iter_mut().zip(instructions::RUNS_MS) {
                    let requests = run(self, index, run_ms)?;
                    *counted = (instructions::counted(&file)?, requests);
                }
                io::Result::Ok(instructions::per_request(runs))
            })();
            self.callgrind = None;
            match counted {
                Ok(counted) => row.instructions = Some(counted),
                Err(error) => {
                    self.note(format!("{name}, {}, instructions: {error}", row.server));
                }
            }
        }
    }

    // ---- echo -----------------------------------------------------------------------------------

    fn load_step(&mut self, step: &Step, shape: &Shape) -> Option<Table> {
        let mode = match self.mode(shape, step) {
            Ok(mode) => mode,
            Err(error) => {
                self.note(format!("{}: no peak: {error}", step.scenario.name));
                return None;
            }
        };
        let servers: Vec<&'static Server> = step
            .servers
            .iter()
            .copied()
            .filter(|server| self.go.is_some() || !matches!(server.start, Start::Go(_)))
            .collect();
        let row = |server: &'static Server| Row::new(server.name, server.role, step.rounds);
        let (servers, mut rows) = self.entrants(&servers, row);
        let takes_part = |index: usize, round| step.takes_part(servers[index], round);
        self.measure(step, YARDSTICK, &mut rows, takes_part, |runner, index| {
            runner.sample(servers[index], shape, mode, step.warm_ms, step.measure_ms)
        });
        self.count_calls(step, &mut rows, |runner, index| {
            runner.traced(servers[index], shape, mode)
        });
        self.count_instructions(step, &mut rows, |runner, index, run_ms| {
            let (process, listen) = runner.start(servers[index], shape)?;
            let spec = runner.spec(&process, &listen, shape, mode, WARM_MS, run_ms);
            let requests = runner.load(&spec)?.requests_in_all;
            process.terminate()?;
            Ok(requests)
        });
        Some(Table::new(step, YARDSTICK, rows))
    }

    /// One server in one round.
    fn sample(
        &mut self,
        server: &Server,
        shape: &Shape,
        mode: Mode,
        warm_ms: u64,
        measure_ms: u64,
    ) -> io::Result<Sample> {
        let alone = match shape.slow {
            0 => None,
            _ => Some(self.cell(server, &shape.alone(), mode, warm_ms, measure_ms)?),
        };
        let outcome = self.cell(server, shape, mode, warm_ms, measure_ms)?;
        Ok(Sample { alone, ..outcome.into() })
    }

    /// One server, one run of the load generator.
    fn cell(
        &mut self,
        server: &Server,
        shape: &Shape,
        mode: Mode,
        warm_ms: u64,
        measure_ms: u64,
    ) -> io::Result<Outcome> {
        let (process, listen) = self.start(server, shape)?;
        let spec = self.spec(&process, &listen, shape, mode, warm_ms, measure_ms);
        self.load(&spec)
    }

    fn traced(&mut self, server: &Server, shape: &Shape, mode: Mode) -> io::Result<Calls> {
        let (process, listen) = self.start(server, shape)?;
        let spec = self.spec(&process, &listen, shape, mode, 100, 900);
        trace::count(process.pid(), self.settings.client_core, || {
            Ok(self.load(&spec)?.requests_in_all)
        })
    }

    fn spec(
        &self,
        process: &ServerProcess,
        listen: &Address,
        shape: &Shape,
        mode: Mode,
        warm_ms: u64,
        measure_ms: u64,
    ) -> Spec {
        Spec {
            target: listen.to_string(),
            tls: self.certificate.clone().filter(|_| shape.tls),
            server_pid: process.pid(),
            mode,
            connections: shape.connections,
            idle: shape.idle,
            slow: shape.slow,
            message: shape.message,
            framed: shape.framed,
            warm_ms,
            measure_ms,
            settle_ms: if shape.settle { SETTLE_MS } else { 0 },
            verify: false,
        }
    }

    fn start(&mut self, server: &Server, shape: &Shape) -> io::Result<(ServerProcess, Address)> {
        let listen = if shape.unix { process::unix_address() } else { process::tcp_address()? };
        let burst_bytes = shape.burst_bytes();
        let options = Options { listen: listen.clone(), burst_bytes, framed: shape.framed };
        let command = match (server.start, &self.go) {
            (Start::Go(library), Some(executable)) => {
                golang::command(executable, library, &options)
            }
            (Start::Go(_), None) => return Err(io::Error::other("the Go servers are not built")),
            (Start::Function(_), _) => {
                let mut command = Command::new(self.program()?);
                command
                    .args(["serve", server.name, "--listen", &listen.to_string()])
                    .args(["--burst", &options.burst_bytes.to_string()])
                    .args(options.framed.then_some("--framed"));
                command
            }
        };
        let command = instructions::under(command, self.callgrind.as_deref());
        Ok((ServerProcess::start(command, self.settings.server_core, &listen)?, listen))
    }

    fn load(&self, spec: &Spec) -> io::Result<Outcome> {
        self.generate("load", spec, self.settings.client_core)
    }

    /// Runs a load generator, by its name on the command line, in a process of its own, on a core or wherever the kernel wants.
    fn generate(
        &self,
        name: &str,
        spec: &impl Serialize,
        core: impl Into<Option<usize>>,
    ) -> io::Result<Outcome> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(name).arg(serde_json::to_string(spec)?).stdin(Stdio::null());
        process::on_core(&mut command, core);
        let output = command.output()?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(complaint.trim().to_owned()));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The pace of a shape; for an open loop, the yardstick's peak comes first.
    fn mode(&mut self, shape: &Shape, step: &Step) -> io::Result<Mode> {
        let percent = match shape.pace {
            Pace::Closed { depth } => return Ok(Mode::Closed { depth }),
            Pace::Churn => return Ok(Mode::Churn),
            Pace::Open { percent } => percent,
        };
        let sockets = if shape.unix { "Unix" } else { "TCP" };
        let what = format!(
            "{YARDSTICK}, {} B on {} {sockets} connections",
            shape.message, shape.connections
        );
        let peak = self.peak(step, what, |runner| {
            let yardstick = servers::find(YARDSTICK)
                .ok_or_else(|| io::Error::other("the yardstick is missing"))?;
            runner.cell(yardstick, &shape.peak(), Mode::Closed { depth: 1 }, 500, 1500)
        })?;
        Ok(Mode::Open { rate: peak * f64::from(percent) / 100.0 })
    }

    /// Requests a second of a yardstick in a closed loop, measured once.
    fn peak(
        &mut self,
        step: &Step,
        what: String,
        measure: impl FnOnce(&mut Self) -> io::Result<Outcome>,
    ) -> io::Result<f64> {
        if let Some(peak) = self.peaks.get(&what) {
            return Ok(*peak);
        }
        self.progress.trace(&step.scenario.name, "peak");
        let outcome = measure(self)?;
        let peak = outcome.requests as f64 / outcome.seconds;
        self.note(format!("peak of {what}: {peak:.0} requests/s"));
        self.peaks.insert(what, peak);
        Ok(peak)
    }

    // ---- proxies --------------------------------------------------------------------------------

    fn proxy_step(&mut self, step: &Step, shape: &Shape, threads: usize) -> Option<Table> {
        if shape.tls {
            self.certify()?;
        }
        let mut proxies = step.proxies.clone();
        proxies.retain(|proxy| match proxy::available(proxy) {
            Ok(()) => true,
            Err(note) => {
                self.note(note);
                false
            }
        });
        let row = |proxy: &'static proxy::Server| Row::new(proxy.name, proxy.role, step.rounds);
        let (proxies, mut rows) = self.entrants(&proxies, row);
        self.measure(step, proxy::YARDSTICK, &mut rows, everyone, |runner, index| {
            let relayed = |runner: &mut Self, process: &ServerProcess, listen: &Address| {
                let mode = runner.mode(shape, step)?;
                let (warm, measure) = (step.warm_ms, step.measure_ms);
                runner.load(&runner.spec(process, listen, shape, mode, warm, measure))
            };
            Ok(runner.relayed(proxies[index], shape, threads, relayed)?.into())
        });
        if threads == 1 {
            self.count_calls(step, &mut rows, |runner, index| {
                runner.relayed(proxies[index], shape, threads, |runner, process, listen| {
                    let mode = runner.mode(shape, step)?;
                    let spec = runner.spec(process, listen, shape, mode, 100, 900);
                    trace::count(process.pid(), runner.settings.client_core, || {
                        Ok(runner.load(&spec)?.requests_in_all)
                    })
                })
            });
        }
        Some(Table::new(step, proxy::YARDSTICK, rows))
    }

    /// Starts a proxy in front of an echo server, which shares the load generator's core.
    fn relayed<T>(
        &mut self,
        proxy: &proxy::Server,
        shape: &Shape,
        threads: usize,
        measure: impl FnOnce(&mut Self, &ServerProcess, &Address) -> io::Result<T>,
    ) -> io::Result<T> {
        let (upstream, listen) = (process::tcp_address()?, process::tcp_address()?);
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", YARDSTICK, "--listen", &upstream.to_string()])
            .args(["--burst", &shape.burst_bytes().to_string()]);
        let client_core = self.settings.client_core;
        let _upstream = ServerProcess::start(command, client_core, &upstream)?;
        let options = proxy::Options {
            listen: listen.tcp()?,
            upstream: upstream.tcp()?,
            threads,
            tls: self.certificate.clone().filter(|_| shape.tls),
        };
        let programs = proxy::Programs {
            compare: std::env::current_exe()?,
            ours: match &self.settings.against {
                Some(revision) if self.older => revision.program("proxy"),
                _ => process::target_folder().join("release/proxy"),
            },
        };
        let command = proxy::command(proxy, &options, &programs, &resp::scratch_folder()?)?;
        let core = (threads == 1).then_some(self.settings.server_core);
        let process = ServerProcess::start(command, core, &listen)?;
        measure(self, &process, &listen)
    }

    // ---- RESP -----------------------------------------------------------------------------------

    fn resp_step(&mut self, step: &Step, command: &str, pipeline: usize) -> Option<Table> {
        if self.resp_servers.is_empty() {
            return None;
        }
        let servers = self.resp_servers.clone();
        let role = |index| {
            if index == 0 { Role::Yardstick } else { Role::Ours }
        };
        let mut rows: Vec<Row> = servers
            .iter()
            .enumerate()
            .map(|(index, server)| Row::new(&server.name, role(index), step.rounds))
            .collect();
        let yardstick = rows[0].server.clone();
        self.measure(step, &yardstick, &mut rows, everyone, |runner, index| {
            Ok(runner.resp_cell(servers[index], command, pipeline, step.measure_ms)?.into())
        });
        Some(Table::new(step, &yardstick, rows))
    }

    fn resp_cell(
        &mut self,
        server: &RespServer,
        test: &str,
        pipeline: usize,
        measure_ms: u64,
    ) -> io::Result<Outcome> {
        let listen = process::tcp_address()?;
        let addr = listen.tcp()?;
        let mut command = server.command(addr.port());
        // A relative program path is meant from here.
        if server.words[0].contains('/') {
            let program = std::fs::canonicalize(&server.words[0])?;
            let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            command = Command::new(program);
            command.args(args);
        }
        command.current_dir(resp::scratch_folder()?);
        let process = ServerProcess::start(command, self.settings.server_core, &listen)?;
        resp::run(&process, addr, self.settings.client_core, test, pipeline, measure_ms)
    }

    // ---- HTTP, gRPC, TLS ------------------------------------------------------------------------

    #[cfg(not(feature = "http"))]
    fn web_step(&mut self, _: &Step, shape: &WebShape) -> Option<Table> {
        self.note(web::available(shape).err()?);
        None
    }

    #[cfg(feature = "http")]
    fn web_step(&mut self, step: &Step, shape: &WebShape) -> Option<Table> {
        if let Err(note) = web::available(shape) {
            self.note(note);
            return None;
        }
        let place = web::measure::Place {
            folder: self.certify()?,
            program: PathBuf::new(),
            server_core: self.settings.server_core,
            client_core: self.settings.client_core,
            go: self.go.clone(),
            callgrind: None,
        };
        let servers: Vec<&'static web::Server> =
            step.web_servers.iter().copied().filter(|server| self.has(server)).collect();
        let row = |server: &'static web::Server| Row::new(server.name, server.role, step.rounds);
        let (servers, mut rows) = self.entrants(&servers, row);
        let at = |runner: &Self| -> io::Result<web::measure::Place> {
            let callgrind = runner.callgrind.clone();
            Ok(web::measure::Place { program: runner.program()?, callgrind, ..place.clone() })
        };
        self.measure(step, web::YARDSTICK, &mut rows, everyone, |runner, index| {
            let (warm, measure) = (step.warm_ms, step.measure_ms);
            Ok(web::measure(&at(runner)?, servers[index], shape, warm, measure)?.into())
        });
        self.count_calls(step, &mut rows, |runner, index| {
            web::measure::count_calls(&at(runner)?, servers[index], shape)
        });
        self.count_instructions(step, &mut rows, |runner, index, run_ms| {
            web::measure::requests(&at(runner)?, servers[index], shape, run_ms)
        });
        Some(Table::new(step, web::YARDSTICK, rows))
    }

    /// The folder of the certificate; without one, a note says why.
    fn certify(&mut self) -> Option<PathBuf> {
        if self.certificate.is_none() {
            match resp::scratch_folder().and_then(|scratch| web::certified(&scratch)) {
                Ok(folder) => self.certificate = Some(folder),
                Err(error) => self.note(format!("no certificate: {error}")),
            }
        }
        self.certificate.clone()
    }

    /// Whether a server is there; a note says that it is not.
    #[cfg(feature = "http")]
    fn has(&mut self, server: &web::Server) -> bool {
        match server.start {
            web::Start::Function(_) => true,
            web::Start::Go => self.go.is_some(),
            web::Start::Nginx => {
                let found = process::have(&web::nginx::program().to_string_lossy());
                if !found {
                    self.note("`nginx` is not installed: it is left out".into());
                }
                found
            }
        }
    }

    // ---- datagrams ------------------------------------------------------------------------------

    fn udp_step(&mut self, step: &Step, shape: &udp::shape::Shape) -> Option<Table> {
        let yardstick = udp::yardstick(shape);
        let rate = match self.udp_rate(step, shape, yardstick) {
            Ok(rate) => rate,
            Err(error) => {
                self.note(format!("{}: no peak: {error}", step.scenario.name));
                return None;
            }
        };
        let mut servers = step.udp_servers.clone();
        servers.retain(|server| self.go.is_some() || !matches!(server.start, udp::Start::Go));
        let role = |server: &udp::Server| {
            if server.name == yardstick { Role::Yardstick } else { server.role }
        };
        let row = |server: &'static udp::Server| Row::new(server.name, role(server), step.rounds);
        let (servers, mut rows) = self.entrants(&servers, row);
        let times = (step.warm_ms, step.measure_ms, LOST_AFTER_MS);
        self.measure(step, yardstick, &mut rows, everyone, |runner, index| {
            Ok(runner.udp_cell(servers[index], shape, rate, times, |_, load| load())?.into())
        });
        self.count_calls(step, &mut rows, |runner, index| {
            let core = runner.settings.client_core;
            // strace makes thousands that are under way wait for seconds.
            let times = (100, 900, 10 * LOST_AFTER_MS);
            runner.udp_cell(servers[index], shape, rate, times, |pid, load| {
                trace::count(pid, core, || Ok(load()?.requests_in_all))
            })
        });
        Some(Table::new(step, yardstick, rows))
    }

    /// Datagrams a second of an open loop.
    fn udp_rate(
        &mut self,
        step: &Step,
        shape: &udp::shape::Shape,
        yardstick: &str,
    ) -> io::Result<Option<f64>> {
        let Some(percent) = shape.percent else { return Ok(None) };
        let server = udp::find(yardstick).ok_or_else(|| io::Error::other("no yardstick"))?;
        let what = format!("{yardstick}, {} B, UDP peers: {}", shape.bytes, shape.peers);
        let peak = self.peak(step, what, |runner| {
            runner.udp_cell(server, shape, None, (500, 1500, LOST_AFTER_MS), |_, load| load())
        })?;
        Ok(Some(peak * f64::from(percent) / 100.0))
    }

    /// Starts a server, and hands its process id and a run of the load generator to `measure`.
    fn udp_cell<T>(
        &self,
        server: &udp::Server,
        shape: &udp::shape::Shape,
        rate: Option<f64>,
        (warm_ms, measure_ms, lost_after_ms): (u64, u64, u64),
        measure: impl FnOnce(u32, &dyn Fn() -> io::Result<Outcome>) -> io::Result<T>,
    ) -> io::Result<T> {
        let options =
            udp::Options { listen: process::udp_address()?, ask: shape.ask, bytes: shape.bytes };
        let program = self.program()?;
        let core = self.settings.server_core;
        let process = udp::start(&program, self.go.as_deref(), server, &options, core)?;
        let spec = udp::load::Spec {
            target: options.listen,
            server_pid: process.pid(),
            ask: shape.ask,
            bytes: shape.bytes,
            peers: shape.peers,
            rate,
            warm_ms,
            measure_ms,
            lost_after_ms,
            verify: false,
        };
        let core = self.settings.client_core;
        measure(process.pid(), &|| self.generate("udp-load", &spec, core))
    }

    #[cfg(not(feature = "quic"))]
    fn quic_step(&mut self, _: &Step, _: &crate::quic::shape::Shape) -> Option<Table> {
        self.note("built without the feature `quic`: its scenarios are left out".into());
        None
    }

    /// Adds a note to the report, once.
    fn note(&mut self, note: String) {
        if !self.report.notes.contains(&note) {
            self.progress.clear();
            eprintln!("note: {note}");
            self.report.notes.push(note);
        }
    }
}

/// Every server takes part in every round.
fn everyone(_: usize, _: usize) -> bool {
    true
}

/// The progress line, on stderr. A terminal gets one line that changes, a log one line a round.
struct Progress {
    started: Instant,
    /// When the last step was done.
    lap: Instant,
    estimate: Duration,
    cells: usize,
    done: usize,
    terminal: bool,
}

impl Progress {
    fn new(cells: usize, estimate: Duration) -> Self {
        let terminal = io::stderr().is_terminal();
        eprintln!("{cells} runs, about {}", minutes(estimate));
        let now = Instant::now();
        Progress { started: now, lap: now, estimate, cells, done: 0, terminal }
    }

    /// So many runs come on top.
    fn more(&mut self, runs: usize, each: Duration) {
        self.cells += runs;
        self.estimate += each * runs as u32;
    }

    fn cell(&mut self, what: &str, server: &str, is_first: bool) {
        self.done += 1;
        let head = format!(
            "[{}/{}, {} of about {}] {what}",
            self.done,
            self.cells,
            minutes(self.started.elapsed()),
            minutes(self.estimate),
        );
        if self.terminal {
            self.line(&format!("{head}: {server}"));
        } else if self.done == 1 || is_first {
            eprintln!("{head}");
        }
    }

    /// Seconds since the last call.
    fn lap(&mut self) -> f64 {
        std::mem::replace(&mut self.lap, Instant::now()).elapsed().as_secs_f64()
    }

    fn trace(&mut self, scenario: &str, what: &str) {
        if self.terminal {
            self.line(&format!(
                "[{}] {scenario}, system calls: {what}",
                minutes(self.started.elapsed())
            ));
        }
    }

    fn line(&self, text: &str) {
        let mut stderr = io::stderr();
        let _ = write!(stderr, "\r\x1b[K{text}");
        let _ = stderr.flush();
    }

    fn clear(&self) {
        if self.terminal {
            self.line("");
        }
    }
}

/// Minutes and seconds.
pub fn minutes(duration: Duration) -> String {
    format!("{}:{:02}", duration.as_secs() / 60, duration.as_secs() % 60)
}
