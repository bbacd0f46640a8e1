//! What a flood of datagrams on one socket costs 50 clients that echo over TCP on the same poller.
//!
//! ```text
//! cargo run --release -p duopoll-benches --no-default-features --bin flood -- --engine uring --rounds 5
//! ```
//!
//! In each round the clients echo 64 B in a closed loop: alone, beside a flood on a socket of the same poller, and beside one on a socket
//! of another process on the same processor, which is what of the difference the kernel costs everybody.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::udp::{UdpServer, UdpSocket as Socket};
use duopoll::{Engine, EventLoop, Listener, Pollers};
use duopoll_benches::arguments::{self, parse};
use duopoll_benches::awake::Awake;
use duopoll_benches::load::{self, Mode, Outcome, Spec};
use duopoll_benches::process as processes;
use duopoll_benches::servers::duopoll::echo;
use duopoll_benches::sys;

const HELP: &str = "flood [--engine epoll|uring] [--rate N] [--seconds N] [--rounds N]

50 clients echo 64 B over TCP, alone and beside a flood of datagrams of 64 B: on a socket of the same poller, and elsewhere.

  --engine   of the server (default: what it takes by itself)
  --rate     datagrams a second (default: 250000)
  --seconds  how long each is measured; with the default rate 4 seconds are a million datagrams (default: 4)
  --rounds   how often (default: 3)";

const CLIENTS: usize = 50;
const MESSAGE_BYTES: usize = 64;
const WARM_UP: Duration = Duration::from_millis(500);
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
/// Datagrams that are sent between two looks at the time.
const BURST: u64 = 50;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["serve", engine] => parse(engine).and_then(serve),
        _ => arguments::run(&words, HELP, Plan::read, |plan| measure(&plan)),
    };
    processes::exit_code("flood", result)
}

// ---- the server ----------------------------------------------------------------------------------

/// Echoes over TCP, and takes datagrams on the same poller. Says how many at the end of its input.
fn serve(engine: Engine) -> io::Result<()> {
    let pollers = Pollers::options().engine(engine).count(1).start()?;
    let server = EventLoop::builder().on(pollers.clone()).on_request(echo);
    let server = server.serve(Listener::bind("127.0.0.1:0")?)?;
    let taken = Arc::new(AtomicU64::new(0));
    let counted = taken.clone();
    let count = async move |_: &mut Socket, datagrams: &mut Vec<_>| {
        counted.fetch_add(datagrams.len() as u64, Ordering::Relaxed);
    };
    let datagrams = UdpServer::serve(&pollers, Socket::options(), "127.0.0.1:0", count)?;
    println!("{}\n{}\n{}", server.local_addr(), datagrams.local_addr(), server.engine_report());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    println!("{}", taken.load(Ordering::Relaxed));
    Ok(())
}

/// A server in a process of its own.
struct Served {
    child: Child,
    echo: String,
    datagrams: SocketAddr,
    report: String,
    says: Box<dyn BufRead>,
}

impl Served {
    fn start(engine: Engine) -> io::Result<Served> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["serve", &format!("{engine:?}").to_lowercase()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        processes::on_core(&mut command, SERVER_CORE);
        let mut child = command.spawn()?;
        let says = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
        let mut says = BufReader::new(says);
        let mut line = || {
            let mut line = String::new();
            says.read_line(&mut line)?;
            io::Result::Ok(line.trim().to_owned())
        };
        let (echo, datagrams, report) = (line()?, parse(&line()?)?, line()?);
        Ok(Served { child, echo, datagrams, report, says: Box::new(says) })
    }

    /// Ends it. How many datagrams it has taken.
    fn end(mut self) -> io::Result<u64> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        self.child.wait()?;
        parse(line.trim())
    }
}

// ---- the flood -----------------------------------------------------------------------------------

/// Sends so many datagrams a second until it is to end. How many that was.
fn flood(to: SocketAddr, rate: u64, ends: &AtomicBool) -> io::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(to)?;
    let (begun, mut sent) = (Instant::now(), 0);
    while !ends.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_micros() as u64 * rate / 1_000_000;
        for _ in 0..due.saturating_sub(sent).min(BURST) {
            socket.send(&[7; MESSAGE_BYTES])?;
            sent += 1;
        }
        if sent >= due {
            thread::sleep(Duration::from_micros(100));
        }
    }
    Ok(sent)
}

// ---- the measurement -----------------------------------------------------------------------------

struct Plan {
    engine: Engine,
    rate: u64,
    window: Duration,
    rounds: usize,
}

impl Plan {
    fn read(words: &[&str]) -> Result<Plan, String> {
        let (engine, window) = (Engine::Auto, Duration::from_secs(4));
        let mut plan = Plan { engine, rate: 250_000, window, rounds: 3 };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || arguments::value(&mut words, word);
            match word {
                "--engine" => plan.engine = arguments::number(value()?, word)?,
                "--rate" => plan.rate = arguments::at_least(1, value()?, word)?,
                "--seconds" => plan.window = arguments::seconds(value()?, word)?,
                "--rounds" => plan.rounds = arguments::rounds(value()?, word)?,
                other => return Err(format!("unknown option {other:?}")),
            }
        }
        Ok(plan)
    }
}

fn measure(plan: &Plan) -> io::Result<()> {
    let _awake = Awake::keep_or_say();
    sys::pin_to_core(CLIENT_CORE)?;
    let (rate, measure_ms) = (plan.rate, plan.window.as_millis() as u64);
    for round in 1..=plan.rounds {
        let (server, elsewhere) = (Served::start(plan.engine)?, Served::start(plan.engine)?);
        if round == 1 {
            println!("{}\n", server.report);
            println!("| beside | echoes/s | p50 µs | × alone | p99 µs | datagrams | taken |");
            println!("|---|---:|---:|---:|---:|---:|---:|");
        }
        let alone = clients(&server, measure_ms)?;
        println!("{}", line("nothing", &alone, &alone, 0, 0));
        let (there, sent_there) =
            beside(elsewhere.datagrams, rate, || clients(&server, measure_ms))?;
        let (here, sent_here) = beside(server.datagrams, rate, || clients(&server, measure_ms))?;
        println!("{}", line("a flood elsewhere", &there, &alone, sent_there, elsewhere.end()?));
        println!("{}", line("a flood here", &here, &alone, sent_here, server.end()?));
        for (beside, outcome) in
            [("nothing", alone), ("a flood elsewhere", there), ("a flood here", here)]
        {
            if outcome.requests == 0 {
                return Err(io::Error::other(format!(
                    "no echo came beside {beside}, round {round}"
                )));
            }
        }
    }
    Ok(())
}

fn clients(server: &Served, measure_ms: u64) -> io::Result<Outcome> {
    load::run(&Spec {
        target: server.echo.clone(),
        tls: None,
        server_pid: server.child.id(),
        mode: Mode::Closed { depth: 1 },
        connections: CLIENTS,
        idle: 0,
        slow: 0,
        message: MESSAGE_BYTES,
        framed: false,
        warm_ms: WARM_UP.as_millis() as u64,
        measure_ms,
        settle_ms: 0,
        verify: false,
    })
}

/// What is measured while datagrams flood a socket, and how many were sent.
fn beside<T>(
    to: SocketAddr,
    rate: u64,
    measure: impl FnOnce() -> io::Result<T>,
) -> io::Result<(T, u64)> {
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(to, rate, &ends));
        let measured = measure();
        ends.store(true, Ordering::Relaxed);
        let sent = flooding.join().map_err(|_| io::Error::other("the flood has panicked"))??;
        Ok((measured?, sent))
    })
}

/// A line of the table. Where no echo came there are no latencies, which are 0 then.
fn line(beside: &str, outcome: &Outcome, alone: &Outcome, sent: u64, taken: u64) -> String {
    let latency = |of: &Outcome, us: f64| if of.requests > 0 { us } else { f64::NAN };
    let told = |value: f64, digits: usize| match value.is_finite() {
        true => format!("{value:.digits$}"),
        false => "–".to_owned(),
    };
    let (p50_us, p99_us) = (latency(outcome, outcome.p50_us), latency(outcome, outcome.p99_us));
    let ratio = told(p50_us / latency(alone, alone.p50_us), 2);
    let rate = outcome.requests as f64 / outcome.seconds;
    let (p50, p99) = (told(p50_us, 0), told(p99_us, 0));
    format!("| {beside} | {rate:.0} | {p50} | {ratio} | {p99} | {sent} | {taken} |")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_echo_came_there_is_no_ratio() {
        let some = Outcome {
            requests: 10,
            seconds: 1.0,
            p50_us: 20.0,
            p99_us: 30.0,
            ..Outcome::default()
        };
        let none = Outcome { seconds: 1.0, ..Outcome::default() };
        assert_eq!(line("x", &some, &some, 5, 4), "| x | 10 | 20 | 1.00 | 30 | 5 | 4 |");
        assert_eq!(line("x", &none, &some, 5, 4), "| x | 0 | – | – | – | 5 | 4 |");
        assert_eq!(line("x", &some, &none, 5, 4), "| x | 10 | 20 | – | 30 | 5 | 4 |");
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert!(Plan::read(&["--engine", "epoll", "--rate", "1000", "--seconds", "0.5"]).is_ok());
        for wrong in
            ["--rounds 0", "--seconds inf", "--rate 0", "--engine kqueue", "--rate", "epoll"]
        {
            let words: Vec<&str> = wrong.split(' ').collect();
            let error = Plan::read(&words).err().unwrap_or_default();
            assert!(error.contains(words[0]), "{wrong}: {error}");
        }
    }
}
