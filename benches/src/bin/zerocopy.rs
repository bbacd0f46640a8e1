//! What sends without a copy are worth: processor time per MiB sent, with and without, over any network.
//!
//! ```text
//! zerocopy sink --listen 127.0.0.1:9000
//! zerocopy send --to 127.0.0.1:9000 --engine epoll
//! ```
//!
//! The sink is a program of its own, so that its share is not counted. Each round has a connection of its own, and the
//! two ways take turns.

use std::env;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use duopoll::{Dialer, Engine, Limits, Pollers, Slice, Stats};
use duopoll_benches::arguments;
use pollster::block_on;

const HELP: &str = "zerocopy sink --listen ADDRESS
zerocopy send --to ADDRESS [--engine epoll|uring] [--mib N] [--rounds N] [--insist]

  sink      reads and drops what it is sent
  send      sends messages of 4 KiB to 4 MiB, with copies and without, and prints a table
  --mib     how much to send per size and round (default: 256)
  --rounds  how often; the median counts (default: 5)
  --insist  exit code 1 if over 1 % of what was to go without a copy was copied";

/// Messages that take turns, so that not all of them are in the cache.
const MESSAGES: usize = 8;

struct Flags {
    to: SocketAddr,
    engine: Engine,
    mib: usize,
    rounds: usize,
    insist: bool,
}

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let result = match args.next().as_deref() {
        Some("sink") => sink(args),
        Some("send") => send(args),
        Some("--help" | "-h") => {
            arguments::show(&format!("{HELP}\n"));
            Ok(())
        }
        _ => Err(HELP.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn value<T: std::str::FromStr>(args: &mut impl Iterator<Item = String>) -> Result<T, String> {
    args.next().and_then(|text| text.parse().ok()).ok_or_else(|| HELP.to_owned())
}

fn sink(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let Some("--listen") = args.next().as_deref() else { return Err(HELP.to_owned()) };
    let address: SocketAddr = value(&mut args)?;
    let listener = TcpListener::bind(address).map_err(|error| format!("{address}: {error}"))?;
    println!("listening on {address}");
    for stream in listener.incoming() {
        let stream = stream.map_err(|error| error.to_string())?;
        thread::spawn(move || drain(stream));
    }
    Ok(())
}

fn drain(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 20];
    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
}

fn send(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let mut flags = Flags {
        to: SocketAddr::from(([127, 0, 0, 1], 9000)),
        engine: Engine::Auto,
        mib: 256,
        rounds: 5,
        insist: false,
    };
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--to" => flags.to = value(&mut args)?,
            "--engine" => flags.engine = value(&mut args)?,
            "--mib" => {
                let text: String = value(&mut args)?;
                flags.mib = arguments::at_least(1, &text, &flag)?;
            }
            "--rounds" => {
                let text: String = value(&mut args)?;
                flags.rounds = arguments::rounds(&text, &flag)?;
            }
            "--insist" => flags.insist = true,
            _ => return Err(HELP.to_owned()),
        }
    }
    compare(&flags).map_err(|error| error.to_string())
}

fn compare(flags: &Flags) -> io::Result<()> {
    println!(
        "| message | with a copy, µs/MiB | without, µs/MiB | ratio | left without a copy | copied all the same |"
    );
    println!("|---|---|---|---|---|---|");
    for power in 12..=22 {
        let size = 1_usize << power;
        let (mut plain, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut stats, mut failed) = (Stats::default(), false);
        for _ in 0..flags.rounds {
            let (copying, _) = round(flags, size, None)?;
            let (spent, seen) = round(flags, size, Some(size))?;
            plain.push(copying);
            without.push(spent);
            // Within a round, so that a slow minute of the machine cancels out.
            ratios.push(spent / copying);
            failed |= seen.zerocopy_bytes < 100 * seen.zerocopy_copied_bytes.max(1);
            stats += seen;
        }
        let (plain, without) = (median(&mut plain), median(&mut without));
        let share =
            |bytes: u64| 100.0 * bytes as f64 / (flags.mib * flags.rounds) as f64 / 1048576.0;
        println!(
            "| {} KiB | {plain:.1} | {without:.1} | {:.2} | {:.0} % | {:.1} % |",
            size >> 10,
            median(&mut ratios),
            share(stats.zerocopy_bytes),
            share(stats.zerocopy_copied_bytes),
        );
        if flags.insist && failed {
            return Err(io::Error::other(format!("too much was copied: {stats}")));
        }
    }
    Ok(())
}

/// Sends it all over one connection. Returns the processor time per MiB in microseconds, and what was counted.
fn round(flags: &Flags, size: usize, zerocopy: Option<usize>) -> io::Result<(f64, Stats)> {
    let pollers = Pollers::options().engine(flags.engine).count(1).start()?;
    let mut limits = Limits::default();
    limits.zerocopy_bytes = zerocopy;
    let messages: Vec<Slice> = (0..MESSAGES).map(|n| vec![n as u8; size].into()).collect();
    let count = (flags.mib << 20) / size;
    let dialer = Dialer::new().pollers(pollers.clone()).limits(limits);
    let before = processor_time();
    block_on(async {
        let mut connection = dialer.dial_addr(flags.to).await?;
        for message in messages.iter().cycle().take(count) {
            connection.push(message.clone());
            connection.flush().await?;
        }
        connection.drain().await
    })?;
    // What is closed waits for the last notice.
    while pollers.stats().closed == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let spent = processor_time() - before;
    Ok((spent.as_secs_f64() * 1e6 / flags.mib as f64, pollers.stats()))
}

fn processor_time() -> Duration {
    // SAFETY: a rusage may be all zero, and is written during the call only.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
