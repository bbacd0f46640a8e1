//! What pollers of one process cost each other: two in one process beside two processes that have one each.
//!
//! ```text
//! cargo run --release -p duopoll-benches --no-default-features --bin pollers
//! ```
//!
//! Each poller has a core, and shares it with a client, half of whose connections are with either poller. So all differs
//! by no more than what the pollers of one process share: the pool of blocks, the server's figures, the kernel's table of
//! descriptors and its address space. For small messages: of large ones the kernel's threads do a part, which is counted for processes that
//! have a core to themselves, and not for the one that has both.

use std::env;
use std::io;
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

const HELP: &str = "pollers [--bytes N] [--connections N] [--rounds N] [--seconds S]

CPU time of an echo on two pollers of one process, and on two processes with one each.

  --bytes        of a message (default: 64)
  --connections  on each poller, two at least (default: 50)
  --rounds       how often (default: 9)
  --seconds      that are measured of each (default: 1)";

const CORES: [usize; 2] = [0, 1];
const ENGINES: [(&str, Engine); 2] = [("epoll", Engine::Epoll), ("uring", Engine::Uring)];

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["serve", engine, address, pollers] => serve(engine, address, pollers),
        ["load", spec] => generate(spec),
        _ => arguments::run(&words, HELP, Plan::read, |plan| measure(&plan)),
    };
    process::exit_code("pollers", result)
}

/// Where one of them is asked for, its core is that of the process; two have one each.
fn serve(engine: &str, address: &str, pollers: &str) -> io::Result<()> {
    let engine = ENGINES.iter().find(|(name, _)| *name == engine).map_or(Engine::Auto, |it| it.1);
    let pollers: usize = parse(pollers)?;
    let builder = EventLoop::builder().engine(engine).pollers(pollers).pinned(pollers > 1);
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
    bytes: usize,
    connections: usize,
    rounds: usize,
    window: Duration,
}

fn measure(plan: &Plan) -> io::Result<()> {
    let _awake = Awake::keep_or_say();
    println!(
        "{:8} {:>12} {:>12} {:>24}",
        "", "apart, µs", "together, µs", "together / apart, within"
    );
    for (engine, _) in ENGINES {
        let (mut apart, mut together) = (Vec::new(), Vec::new());
        for _ in 0..plan.rounds {
            apart.push(plan.of_two(engine)?);
            together.push(plan.of_one(engine)?);
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
        let mut plan = Plan { bytes: 64, connections: 50, rounds: 9, window };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || arguments::value(&mut words, word);
            match word {
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
    fn of_two(&self, engine: &str) -> io::Result<f64> {
        let [one, other] = CORES.map(|core| start(engine, 1, Some(core)));
        let (one, other) = (one?, other?);
        let outcomes = self.load([&one, &other])?;
        let cpu_ns = mean_cpu_ns(&outcomes[..2]) + mean_cpu_ns(&outcomes[2..]);
        Ok(cpu_ns / requests(&outcomes) / 1000.0)
    }

    /// One process with two pollers.
    fn of_one(&self, engine: &str) -> io::Result<f64> {
        let server = start(engine, CORES.len(), None)?;
        let outcomes = self.load([&server, &server])?;
        Ok(mean_cpu_ns(&outcomes) / requests(&outcomes) / 1000.0)
    }

    /// A client on each core for each of the servers, all at once. Those of the first server come first.
    fn load(&self, servers: [&(ServerProcess, Address); 2]) -> io::Result<Vec<Outcome>> {
        let mut clients = Vec::new();
        for (server, address) in servers {
            for core in CORES {
                let spec = Spec {
                    target: address.to_string(),
                    tls: None,
                    server_pid: server.pid(),
                    mode: Mode::Closed { depth: 1 },
                    connections: self.connections / CORES.len(),
                    idle: 0,
                    slow: 0,
                    message: self.bytes,
                    framed: false,
                    warm_ms: 500,
                    measure_ms: self.window.as_millis() as u64,
                    settle_ms: 0,
                    verify: false,
                };
                let mut command = Command::new(env::current_exe()?);
                command.arg("load").arg(serde_json::to_string(&spec)?).stdout(Stdio::piped());
                process::on_core(&mut command, core);
                clients.push(command.spawn()?);
            }
        }
        let outcome = |client: std::process::Child| {
            let output = client.wait_with_output()?;
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        // All of them are waited for, whatever becomes of one.
        let outcomes: Vec<io::Result<Outcome>> = clients.into_iter().map(outcome).collect();
        outcomes.into_iter().collect()
    }
}

fn start(
    engine: &str,
    pollers: usize,
    core: Option<usize>,
) -> io::Result<(ServerProcess, Address)> {
    let address = process::tcp_address()?;
    let mut command = Command::new(env::current_exe()?);
    command.args(["serve", engine, &address.to_string(), &pollers.to_string()]);
    Ok((ServerProcess::start(command, core, &address)?, address))
}

/// Clients of one server read the same clock, at moments that differ a little.
fn mean_cpu_ns(outcomes: &[Outcome]) -> f64 {
    let sum: u64 = outcomes.iter().map(|outcome| outcome.server_cpu_ns).sum();
    sum as f64 / outcomes.len() as f64
}

fn requests(outcomes: &[Outcome]) -> f64 {
    outcomes.iter().map(|outcome| outcome.requests).sum::<u64>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert!(Plan::read(&["--bytes", "1024", "--rounds", "1", "--seconds", "0.5"]).is_ok());
        for wrong in
            ["--rounds 0", "--seconds nan", "--connections 1", "--bytes 0", "--rounds", "9"]
        {
            let words: Vec<&str> = wrong.split(' ').collect();
            let error = Plan::read(&words).err().unwrap_or_default();
            assert!(error.contains(words[0]), "{wrong}: {error}");
        }
    }
}
