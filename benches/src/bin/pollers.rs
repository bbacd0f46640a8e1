//! What pollers of one process cost each other: two in one process beside two processes that have one each.
//!
//! ```text
//! cargo run --release -p duopoll-benches --no-default-features --bin pollers
//! cargo run --release -p duopoll-benches --no-default-features --features http --bin pollers -- --service grpc
//! ```
//!
//! Each poller has a core, and shares it with clients, half of whose connections are with either poller. So all differs
//! by no more than what the pollers of one process share: the pool of blocks, the server's figures, the allocator, the kernel's table
//! of descriptors and its address space. For small messages: of large ones the kernel's threads do a part, which is not counted.

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use duopoll::{Engine, EventLoop, Listener};
use duopoll_benches::address::Address;
use duopoll_benches::arguments::{self, parse};
use duopoll_benches::awake::Awake;
use duopoll_benches::load::{self, Mode, Outcome, Spec};
use duopoll_benches::process::{self, ServerProcess};
use duopoll_benches::servers::duopoll::echo;
use duopoll_benches::stats::estimate;
use duopoll_benches::web::generator::Run;
use duopoll_benches::web::shape::{Ask, Shape};
use duopoll_benches::web::{self, Start};
use duopoll_benches::{resp, sys};

const HELP: &str = "pollers [--service NAME] [--bytes N] [--connections N] [--rounds N] [--seconds S]

CPU time of a request on two pollers of one process, and on two processes with one each.

  --service      echo, http or grpc (default: echo); the others need the feature http, and wrk or h2load
  --bytes        of a message of echo (default: 64)
  --connections  on each poller, two at least (default: 50); those of grpc have 16 streams each
  --rounds       how often (default: 9)
  --seconds      that are measured of each (default: 1); wrk needs whole ones";

const CORES: [usize; 2] = [0, 1];
const ENGINES: [(&str, Engine); 2] = [("epoll", Engine::Epoll), ("uring", Engine::Uring)];

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["serve", service, engine, address, pollers] => serve(service, engine, address, pollers),
        ["load", spec] => generate(spec),
        _ => arguments::run(&words, HELP, Plan::read, |plan| measure(&plan)),
    };
    process::exit_code("pollers", result)
}

/// What is served, and asked for.
#[derive(Clone, Copy, PartialEq)]
enum Service {
    Echo,
    Http,
    Grpc,
}

impl Service {
    const ALL: [(&'static str, Service); 3] =
        [("echo", Service::Echo), ("http", Service::Http), ("grpc", Service::Grpc)];

    fn find(name: &str) -> Result<Service, String> {
        let found = Service::ALL.iter().find(|(its_name, _)| *its_name == name);
        Ok(found.ok_or_else(|| format!("{name:?} is none of echo, http and grpc"))?.1)
    }

    fn name(self) -> &'static str {
        Service::ALL.iter().find(|(_, service)| *service == self).map_or("", |it| it.0)
    }

    /// The load on it over so many connections, if it is one of the web.
    fn shape(self, connections: usize) -> Option<Shape> {
        match self {
            Service::Echo => None,
            Service::Http => Some(Shape::http1(Ask::Hello, connections)),
            Service::Grpc => Some(Shape::http2(Ask::Unary, connections, 16)),
        }
    }
}

/// Where one of them is asked for, its core is that of the process; two have one each.
fn serve(service: &str, engine: &str, address: &str, pollers: &str) -> io::Result<()> {
    let threads: usize = parse(pollers)?;
    let service = Service::find(service).map_err(io::Error::other)?;
    if let Some(shape) = service.shape(1) {
        let missing = || io::Error::other("HTTP and gRPC need the feature `http`");
        let server = web::find(&format!("duopoll-{engine}")).ok_or_else(missing)?;
        let Start::Function(run) = server.start else { return Err(missing()) };
        let listen = address.parse::<Address>().map_err(io::Error::other)?.tcp()?;
        let (app, pinned) = (shape.ask.app(), threads > 1);
        return run(&web::Options { listen, app, http2: false, tls: None, threads, pinned });
    }
    let engine = ENGINES.iter().find(|(name, _)| *name == engine).map_or(Engine::Auto, |it| it.1);
    let builder = EventLoop::builder().engine(engine).pollers(threads).pinned(threads > 1);
    let _server = builder.on_request(echo).serve(Listener::bind(address)?)?;
    loop {
        thread::park();
    }
}

fn generate(spec: &str) -> io::Result<()> {
    let outcome = load::run(&serde_json::from_str(spec)?)?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

struct Plan {
    service: Service,
    bytes: usize,
    connections: usize,
    rounds: usize,
    window: Duration,
}

fn measure(plan: &Plan) -> io::Result<()> {
    if let Some(shape) = plan.service.shape(1) {
        web::available(&shape).map_err(io::Error::other)?;
    }
    let _awake = Awake::keep_or_say();
    let folder = resp::scratch_folder()?;
    println!(
        "{:8} {:>12} {:>12} {:>24}",
        plan.service.name(),
        "apart, µs",
        "together, µs",
        "together / apart, within"
    );
    for (engine, _) in ENGINES {
        let (mut apart, mut together) = (Vec::new(), Vec::new());
        for _ in 0..plan.rounds {
            apart.push(plan.of_two(engine, &folder)?);
            together.push(plan.of_one(engine, &folder)?);
        }
        let ratio = estimate(together.iter().zip(&apart).map(|(one, other)| one / other));
        let (apart, together) = (estimate(apart).median, estimate(together).median);
        let within = match plan.rounds {
            // It has no interval.
            1 => "–".to_owned(),
            _ => format!("{:.3}–{:.3}", ratio.low, ratio.high),
        };
        println!("{engine:8} {apart:12.2} {together:12.2} {:10.3} {within:>13}", ratio.median);
    }
    Ok(())
}

impl Plan {
    fn read(words: &[&str]) -> Result<Plan, String> {
        let window = Duration::from_secs(1);
        let service = Service::Echo;
        let mut plan = Plan { service, bytes: 64, connections: 50, rounds: 9, window };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || arguments::value(&mut words, word);
            match word {
                "--service" => {
                    let found = Service::find(value()?);
                    plan.service = found.map_err(|wrong| format!("{word}: {wrong}"))?;
                }
                "--bytes" => plan.bytes = arguments::at_least(1, value()?, word)?,
                "--connections" => {
                    plan.connections = arguments::at_least(CORES.len(), value()?, word)?;
                }
                "--rounds" => plan.rounds = arguments::rounds(value()?, word)?,
                "--seconds" => plan.window = arguments::seconds(value()?, word)?,
                other => return Err(format!("unknown option {other:?}")),
            }
        }
        Ok(plan)
    }

    /// Two processes with a poller each: CPU time of a request, in microseconds.
    fn of_two(&self, engine: &str, folder: &Path) -> io::Result<f64> {
        let [one, other] = CORES.map(|core| self.start(engine, 1, Some(core)));
        self.load(&[one?, other?], folder)
    }

    /// One process with two pollers.
    fn of_one(&self, engine: &str, folder: &Path) -> io::Result<f64> {
        self.load(&[self.start(engine, CORES.len(), None)?], folder)
    }

    fn start(
        &self,
        engine: &str,
        pollers: usize,
        core: Option<usize>,
    ) -> io::Result<(ServerProcess, Address)> {
        let address = process::tcp_address()?;
        let mut command = Command::new(env::current_exe()?);
        let pollers = pollers.to_string();
        command.args(["serve", self.service.name(), engine, &address.to_string(), &pollers]);
        Ok((ServerProcess::start(command, core, &address)?, address))
    }

    /// Two clients on each core, of half a poller's connections each, all at once. What the servers spend on a request, connections
    /// included.
    fn load(&self, servers: &[(ServerProcess, Address)], folder: &Path) -> io::Result<f64> {
        let cpu_ns = || servers.iter().map(|(server, _)| sys::cpu_time_ns(server.pid())).sum();
        let before: io::Result<u64> = cpu_ns();
        let requests = thread::scope(|scope| {
            let clients: Vec<_> = (0..CORES.len() * CORES.len())
                .map(|client| {
                    let (server, address) = &servers[client / CORES.len() % servers.len()];
                    let core = CORES[client % CORES.len()];
                    // Tools read files that are written for them.
                    let folder = folder.join(client.to_string());
                    scope.spawn(move || self.ask(server.pid(), address, core, &folder))
                })
                .collect();
            // All of them are waited for, whatever becomes of one.
            let died = |_| Err(io::Error::other("a client panicked"));
            let all: Vec<io::Result<u64>> =
                clients.into_iter().map(|client| client.join().unwrap_or_else(died)).collect();
            all.into_iter().sum::<io::Result<u64>>()
        })?;
        let after: io::Result<u64> = cpu_ns();
        Ok((after? - before?) as f64 / requests as f64 / 1000.0)
    }

    /// Runs a client, and says how many requests were answered.
    fn ask(
        &self,
        server_pid: u32,
        address: &Address,
        core: usize,
        folder: &Path,
    ) -> io::Result<u64> {
        let connections = self.connections / CORES.len();
        if let Some(shape) = self.service.shape(connections) {
            fs::create_dir_all(folder)?;
            let run = Run { shape: &shape, addr: address.tcp()?, folder, core: Some(core) };
            let said = match shape.http2 {
                true => run.h2load(0, self.window.as_millis() as u64, |_, _| Ok(()))?,
                false => run.wrk(self.window.as_secs())?,
            };
            if said.errors > 0 || said.requests == 0 {
                return Err(io::Error::other(format!("not all went well: {said:?}")));
            }
            return Ok(said.requests);
        }
        let spec = Spec {
            target: address.to_string(),
            tls: None,
            server_pid,
            mode: Mode::Closed { depth: 1 },
            connections,
            idle: 0,
            slow: 0,
            message: self.bytes,
            framed: false,
            warm_ms: 0,
            measure_ms: self.window.as_millis() as u64,
            settle_ms: 0,
            verify: false,
        };
        let mut command = Command::new(env::current_exe()?);
        command.arg("load").arg(serde_json::to_string(&spec)?).stdout(Stdio::piped());
        process::on_core(&mut command, core);
        let output = command.output()?;
        Ok(serde_json::from_slice::<Outcome>(&output.stdout)?.requests_in_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert!(Plan::read(&["--bytes", "1024", "--rounds", "1", "--seconds", "0.5"]).is_ok());
        assert!(Plan::read(&["--service", "grpc"]).is_ok());
        for wrong in [
            "--rounds 0",
            "--seconds nan",
            "--connections 1",
            "--bytes 0",
            "--service smtp",
            "--rounds",
            "9",
        ] {
            let words: Vec<&str> = wrong.split(' ').collect();
            let error = Plan::read(&words).err().unwrap_or_default();
            assert!(error.contains(words[0]), "{wrong}: {error}");
        }
    }
}
