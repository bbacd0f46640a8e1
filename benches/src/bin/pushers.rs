//! What those who push and never read cost those who do: a server's memory, and the latency of its other clients.
//!
//! ```text
//! cargo run --release -p duopoll-benches --no-default-features --bin pushers -- --engine uring --rounds 3
//! ```
//!
//! Each round has an echo server of its own. 50 clients echo 1 KiB each, one after another, all the time: alone, while the pushers
//! come, while these have the server full, and when they have left. So a ratio is formed within one process and a minute.

use std::env;
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{self, Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Engine, EventLoop, Listener};
use duopoll_benches::address::Address;
use duopoll_benches::arguments::{self, parse};
use duopoll_benches::awake::Awake;
use duopoll_benches::process as processes;
use duopoll_benches::servers::duopoll::echo;
use duopoll_benches::sys::{self, Epoll, Events};
use hdrhistogram::Histogram;

const HELP: &str = "pushers [--engine epoll|uring] [--budget-mib N] [--pushers N] [--seconds N] [--rounds N] [--elsewhere] [--insist]

Peers push pieces of 64 KiB to an echo server and never read, beside 50 clients that echo 1 KiB in a closed loop.

  --engine      of the server (default: what it takes by itself; DUOPOLL_URING=base has its usual meaning)
  --budget-mib  the server's memory budget; 0 sets none (default: 256)
  --pushers     how many (default: 10000)
  --seconds     how long the clients are measured alone, and when the server is full (default: 5)
  --rounds      how often (default: 3)
  --elsewhere   they push to another such server on the same processor: what of the difference is not the memory of this one
  --insist      exit code 1 if a round uses more than a quarter above the budget, has a median above 1.5 of what it was
                without pushers, or has not given the memory back 10 s after they have left";

const CLIENTS: usize = 50;
const MESSAGE_BYTES: usize = 1024;
const PIECE_BYTES: usize = 64 << 10;
const WARM_UP: Duration = Duration::from_secs(1);
/// The longest that filling the server may take.
const FILLING_MAX: Duration = Duration::from_secs(60);
/// When the memory is looked at after the pushers have left.
const LATER: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];
/// What may stay of the memory then.
const KEPT_MIB_MAX: u64 = 64;
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["serve", engine, budget_mib] => {
            parse(engine).and_then(|engine| serve(engine, parse(budget_mib)?))
        }
        ["push", address, count] => {
            parse(address).and_then(|address| push(&address, parse(count)?))
        }
        _ => arguments::run(&words, HELP, Settings::read, |settings| measure(&settings)),
    };
    processes::exit_code("pushers", result)
}

// ---- the server ----------------------------------------------------------------------------------

/// Answers each line of its input with its figures, and ends with it.
fn serve(engine: Engine, budget_mib: usize) -> io::Result<()> {
    let mut builder = EventLoop::builder().engine(engine).pollers(1);
    if budget_mib > 0 {
        builder = builder.memory_budget(budget_mib << 20);
    }
    let server = builder.on_request(echo).serve(Listener::bind("127.0.0.1:0")?)?;
    println!("{}\n{}", server.local_addr(), server.engine_report());
    for line in io::stdin().lines() {
        line?;
        let figures = server.stats().figures();
        let of_interest = figures.filter(|figure| figure.name.starts_with("memory_"));
        let words: Vec<_> = of_interest.map(|it| format!("{}={}", it.name, it.value)).collect();
        println!("{}", words.join(" "));
    }
    Ok(())
}

// ---- those who push ------------------------------------------------------------------------------

/// What they have seen.
static PUSHED_BYTES: AtomicU64 = AtomicU64::new(0);
static CONNECTED: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static RESET: AtomicUsize = AtomicUsize::new(0);

/// Answers each line of its input with what was seen, and leaves with it.
fn push(address: &Address, count: usize) -> io::Result<()> {
    // They share a core with the clients, whose latency is the server's, not this program's.
    // SAFETY: no pointers.
    unsafe { libc::nice(19) };
    thread::spawn(|| {
        for _ in io::stdin().lines().map_while(Result::ok) {
            let seen = |count: &AtomicUsize| count.load(Ordering::Relaxed);
            let pushed = PUSHED_BYTES.load(Ordering::Relaxed);
            println!("{pushed} {} {} {}", seen(&CONNECTED), seen(&REFUSED), seen(&RESET));
        }
        process::exit(0);
    });
    let (epoll, mut events) = (Epoll::new()?, Events::with_capacity(1024));
    let mut pushers = Vec::with_capacity(count);
    for number in 0..count {
        // A source has no more ports than that.
        let source = Ipv4Addr::new(127, 0, 0, 2 + (number / 4096) as u8);
        let pusher = sys::connect(address, Some(source)).and_then(|pusher| {
            sys::wait_writable(pusher.as_fd())?;
            match sys::option(pusher.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR)? {
                0 => Ok(pusher),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        });
        let Ok(pusher) = pusher else {
            REFUSED.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        CONNECTED.fetch_add(1, Ordering::Relaxed);
        epoll.add(pusher.as_fd(), libc::EPOLLOUT, pushers.len() as u64)?;
        pushers.push(Some(pusher));
        push_turn(&epoll, &mut events, &mut pushers, 0)?;
    }
    loop {
        push_turn(&epoll, &mut events, &mut pushers, -1)?;
    }
}

/// Whoever can be sent from is, until the kernel takes no more.
fn push_turn(
    epoll: &Epoll,
    events: &mut Events,
    pushers: &mut [Option<OwnedFd>],
    timeout_ms: i32,
) -> io::Result<()> {
    static PIECE: [u8; PIECE_BYTES] = [b'p'; PIECE_BYTES];
    epoll.wait(events, timeout_ms)?;
    for (_, token) in events.iter() {
        let pusher = &mut pushers[token as usize];
        while let Some(fd) = pusher {
            match sys::send(fd.as_fd(), &PIECE) {
                Ok(sent) => _ = PUSHED_BYTES.fetch_add(sent as u64, Ordering::Relaxed),
                Err(error) if sys::would_block(&error) => break,
                Err(_) => {
                    RESET.fetch_add(1, Ordering::Relaxed);
                    *pusher = None;
                }
            }
        }
    }
    Ok(())
}

// ---- those who read ------------------------------------------------------------------------------

/// What is measured, in order.
const PHASES: [&str; 5] = ["warm-up", "alone", "filling", "full", "left"];
const ALONE: usize = 1;
const FILLING: usize = 2;
const FULL: usize = 3;
const LEFT: usize = 4;
const OVER: usize = 5;

struct Client {
    stream: TcpStream,
    sent: Instant,
    /// What has come of the reply.
    reply: [u8; MESSAGE_BYTES],
    received: usize,
}

impl Client {
    fn connect(to: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Client { stream, sent: Instant::now(), reply: [0; MESSAGE_BYTES], received: 0 })
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        (self.sent, self.received) = (Instant::now(), 0);
        // Nothing else is under way, so there is room.
        match sys::send(self.stream.as_fd(), message)? {
            MESSAGE_BYTES => Ok(()),
            sent => Err(io::Error::other(format!("only {sent} bytes were taken"))),
        }
    }

    /// Whether the reply is complete.
    fn receive(&mut self) -> io::Result<bool> {
        match sys::recv(self.stream.as_fd(), &mut self.reply[self.received..]) {
            Ok(0) => return Err(io::Error::other("the server has closed a client's connection")),
            Ok(received) => self.received += received,
            Err(error) if sys::would_block(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(self.received == MESSAGE_BYTES)
    }
}

/// Latencies in microseconds, by phase.
fn echo_until_over(to: SocketAddr, phase: &AtomicUsize) -> io::Result<Vec<Histogram<u64>>> {
    let message = [b'm'; MESSAGE_BYTES];
    let (epoll, mut events) = (Epoll::new()?, Events::with_capacity(CLIENTS));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Client::connect(to)?;
        epoll.add(client.stream.as_fd(), libc::EPOLLIN, number as u64)?;
        client.send(&message)?;
        clients.push(client);
    }
    let new = || Histogram::<u64>::new(3).map_err(io::Error::other);
    let mut latencies = PHASES.iter().map(|_| new()).collect::<io::Result<Vec<_>>>()?;
    loop {
        epoll.wait(&mut events, 100)?;
        let now = phase.load(Ordering::Relaxed);
        if now == OVER {
            return Ok(latencies);
        }
        for (_, token) in events.iter() {
            let client = &mut clients[token as usize];
            if client.receive()? {
                if client.reply != message {
                    return Err(io::Error::other("a reply is not what was sent"));
                }
                let latency_us = client.sent.elapsed().as_micros() as u64;
                latencies[now].record(latency_us).map_err(io::Error::other)?;
                client.send(&message)?;
            }
        }
    }
}

// ---- measuring -----------------------------------------------------------------------------------

/// A part of this program, as a process that answers lines.
struct Part {
    child: Child,
    asks: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Part {
    fn start(words: &[&str], core: usize) -> io::Result<Part> {
        let mut command = Command::new(env::current_exe()?);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        processes::on_core(&mut command, core);
        let mut child = command.spawn()?;
        let piped = || io::Error::other("no pipe");
        let asks = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().ok_or_else(piped)?);
        Ok(Part { child, asks, answers })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err(io::Error::other("a process has ended too early")),
            _ => Ok(line.trim().to_owned()),
        }
    }

    fn ask(&mut self) -> io::Result<String> {
        if let Some(asks) = &mut self.asks {
            asks.write_all(b"\n")?;
        }
        self.line()
    }

    /// Bytes that were pushed, and how many were connected, refused and reset.
    fn seen(&mut self) -> io::Result<[u64; 4]> {
        let line = self.ask()?;
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().map_err(|_| io::Error::other(line))
    }

    fn memory(&self) -> io::Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let mib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10)
        };
        let known = mib("VmRSS:").zip(mib("VmHWM:"));
        let (resident_mib, peak_mib) = known.ok_or_else(|| io::Error::other("no VmRSS"))?;
        Ok(Memory { resident_mib, peak_mib })
    }

    fn mark(&self) -> io::Result<Mark> {
        let resident_mib = self.memory()?.resident_mib;
        Ok(Mark { resident_mib, cpu_ns: sys::cpu_time_ns(self.child.id())? })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.asks = None;
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy)]
struct Memory {
    resident_mib: u64,
    peak_mib: u64,
}

/// Where the server is.
struct Mark {
    resident_mib: u64,
    cpu_ns: u64,
}

struct Settings {
    engine: String,
    budget_mib: u64,
    pushers: u64,
    window: Duration,
    rounds: usize,
    elsewhere: bool,
    insist: bool,
}

impl Settings {
    fn read(words: &[&str]) -> Result<Settings, String> {
        let mut settings = Settings {
            engine: "auto".to_owned(),
            budget_mib: 256,
            pushers: 10_000,
            window: Duration::from_secs(5),
            rounds: 3,
            elsewhere: false,
            insist: false,
        };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || arguments::value(&mut words, word);
            match word {
                "--engine" => {
                    settings.engine = value()?.to_owned();
                    arguments::number::<Engine>(&settings.engine, word)?;
                }
                "--budget-mib" => settings.budget_mib = arguments::number(value()?, word)?,
                "--pushers" => settings.pushers = arguments::at_least(1, value()?, word)?,
                "--seconds" => settings.window = arguments::seconds(value()?, word)?,
                "--rounds" => settings.rounds = arguments::rounds(value()?, word)?,
                "--elsewhere" => settings.elsewhere = true,
                "--insist" => settings.insist = true,
                other => return Err(format!("unknown option {other:?}")),
            }
        }
        Ok(settings)
    }
}

/// What a round has shown.
struct Round {
    latencies: Vec<Histogram<u64>>,
    /// At the beginning of each phase, and at the end of the last.
    marks: Vec<Mark>,
    later_mib: [u64; LATER.len()],
    peak_mib: u64,
    /// What TCP held in the kernel, of the whole machine.
    kernel_mib: u64,
    filled_in: Duration,
    pushed: [u64; 4],
    /// Bytes of those that were pushed when the server was full.
    pushed_on: u64,
    /// The server's, when it was full and just before the pushers left.
    figures: [String; 2],
}

fn measure(settings: &Settings) -> io::Result<()> {
    let _awake = Awake::keep_or_say();
    sys::raise_descriptor_limit()?;
    let mut complaints = Vec::new();
    for _ in 0..settings.rounds {
        let round = round(settings)?;
        println!("{round}");
        complaints.extend(round.complaints(settings));
    }
    match complaints.is_empty() || !settings.insist {
        true => Ok(()),
        false => Err(io::Error::other(complaints.join("\n"))),
    }
}

fn round(settings: &Settings) -> io::Result<Round> {
    let start = || -> io::Result<(Part, String)> {
        let words = ["serve", &settings.engine, &settings.budget_mib.to_string()];
        let mut server = Part::start(&words, SERVER_CORE)?;
        let address = server.line()?;
        Ok((server, address))
    };
    let (mut server, address) = start()?;
    let other = settings.elsewhere.then(start).transpose()?;
    let pushed_to = other.as_ref().map_or(&address, |(_, address)| address);
    println!("engine: {}", server.line()?);
    let (to, phase) = (parse(&address)?, AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            sys::pin_to_core(CLIENT_CORE)?;
            echo_until_over(to, &phase)
        });
        let shown = drive(settings, &mut server, pushed_to, &phase);
        phase.store(OVER, Ordering::Relaxed);
        let latencies = clients.join().map_err(|_| io::Error::other("a panic"))??;
        Ok(Round { latencies, ..shown? })
    })
}

/// Goes through the phases.
fn drive(
    settings: &Settings,
    server: &mut Part,
    address: &str,
    phase: &AtomicUsize,
) -> io::Result<Round> {
    let mut marks = vec![server.mark()?];
    let mut next = |phase_next: usize, server: &Part| -> io::Result<()> {
        marks.push(server.mark()?);
        phase.store(phase_next, Ordering::Relaxed);
        Ok(())
    };
    thread::sleep(WARM_UP);
    next(ALONE, server)?;
    thread::sleep(settings.window);
    next(FILLING, server)?;
    let begun = Instant::now();
    let mut pushers = Part::start(&["push", address, &settings.pushers.to_string()], CLIENT_CORE)?;
    let mut before = 0;
    loop {
        thread::sleep(Duration::from_secs(1));
        let [bytes, connected, refused, _] = pushers.seen()?;
        let are_there = connected + refused == settings.pushers;
        // It is full when hardly anything is taken any more.
        let more = bytes - before;
        before = bytes;
        if (are_there && more <= bytes / 100) || begun.elapsed() > FILLING_MAX {
            break;
        }
    }
    let filled_in = begun.elapsed();
    let filled = server.ask()?;
    next(FULL, server)?;
    thread::sleep(settings.window);
    next(LEFT, server)?;
    let (pushed, kernel_mib) = (pushers.seen()?, kernel_mib()?);
    let pushed_on = pushed[0] - before;
    let figures = [filled, server.ask()?];
    drop(pushers);
    let left = Instant::now();
    let mut later_mib = [0; LATER.len()];
    for (later, mib) in LATER.iter().zip(&mut later_mib) {
        thread::sleep(later.saturating_sub(left.elapsed()));
        *mib = server.memory()?.resident_mib;
    }
    next(OVER, server)?;
    let peak_mib = server.memory()?.peak_mib;
    let latencies = Vec::new();
    Ok(Round {
        latencies,
        marks,
        later_mib,
        pushed_on,
        peak_mib,
        kernel_mib,
        filled_in,
        pushed,
        figures,
    })
}

/// What TCP holds in the kernel, of all processes.
fn kernel_mib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let tcp = text.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let pages = tcp.rsplit(' ').next().and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.unwrap_or(0) * 4 / 1024)
}

impl Round {
    fn ratio(&self) -> f64 {
        let median = |phase: usize| self.latencies[phase].value_at_quantile(0.5) as f64;
        median(FULL) / median(ALONE)
    }

    fn complaints(&self, settings: &Settings) -> Vec<String> {
        let mut complaints = Vec::new();
        if settings.budget_mib > 0 && self.peak_mib > settings.budget_mib / 4 * 5 {
            complaints.push(format!("{} MiB were resident", self.peak_mib));
        }
        if self.ratio() > 1.5 {
            complaints.push(format!("the median was {:.2} of what it was alone", self.ratio()));
        }
        let [.., kept_mib] = self.later_mib;
        if kept_mib > KEPT_MIB_MAX {
            complaints.push(format!("{kept_mib} MiB stayed"));
        }
        complaints
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| phase | echoes | median, us | p99, us | longest, us | CPU us/echo | MiB at its end |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|")?;
        for (phase, name) in PHASES.iter().enumerate().skip(ALONE) {
            let all = &self.latencies[phase];
            let (median, p99) = (all.value_at_quantile(0.5), all.value_at_quantile(0.99));
            let (count, longest) = (all.len(), all.max());
            let (begin, end) = (&self.marks[phase], &self.marks[phase + 1]);
            let cpu_us = (end.cpu_ns - begin.cpu_ns) as f64 / 1e3 / count.max(1) as f64;
            let resident = end.resident_mib;
            writeln!(
                f,
                "| {name} | {count} | {median} | {p99} | {longest} | {cpu_us:.2} | {resident} |"
            )?;
        }
        let [bytes, connected, refused, reset] = self.pushed;
        let (ratio, filled_in) = (self.ratio(), self.filled_in.as_secs_f64());
        writeln!(
            f,
            "full / alone: {ratio:.2}; peak {} MiB; kernel {} MiB",
            self.peak_mib, self.kernel_mib
        )?;
        writeln!(
            f,
            "pushers: {connected} connected, {refused} refused, {reset} reset, {} MiB in {filled_in:.0} s, and {} when it was full",
            (bytes - self.pushed_on) >> 20,
            self.pushed_on >> 20
        )?;
        let later: Vec<_> = LATER.iter().zip(self.later_mib).collect();
        let later: Vec<_> =
            later.iter().map(|(at, mib)| format!("{mib} MiB after {at:?}")).collect();
        writeln!(f, "left: {}", later.join(", "))?;
        let [filled, end] = &self.figures;
        writeln!(f, "server: {filled} when it was filled\nserver: {end} when they left")
    }
}
