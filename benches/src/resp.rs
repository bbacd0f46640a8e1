//! RESP servers, driven by `redis-benchmark`.

use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::interrupts;
use crate::load::Outcome;
use crate::process::{self, ServerProcess};

/// Connections of `redis-benchmark`, its default.
const CLIENTS: usize = 50;
/// Longest run of `redis-benchmark` before it counts as hung.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A RESP server: a name and a command line in which `{port}` stands for the port on 127.0.0.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RespServer {
    /// The name in the report.
    pub name: String,
    /// The program and its arguments.
    pub words: Vec<String>,
}

impl RespServer {
    /// Parses `NAME=COMMAND LINE`. Words are separated by blanks; there is no quoting.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, line) = text.split_once('=').ok_or("a RESP server is NAME=COMMAND")?;
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        if name.is_empty() || words.is_empty() || !line.contains("{port}") {
            return Err(format!("{text:?} is not NAME=COMMAND with {{port}} in it"));
        }
        Ok(RespServer { name: name.to_owned(), words })
    }

    /// `redis-server` without persistence.
    pub fn redis() -> Self {
        let mut server = RespServer::parse("redis=redis-server --port {port} --bind 127.0.0.1")
            .unwrap_or_else(|error| unreachable!("{error}"));
        // An empty argument, which the notation cannot express.
        server.words.extend(["--save", "", "--appendonly", "no"].map(str::to_owned));
        server
    }

    /// This project's example, on both engines.
    pub fn ours() -> [Self; 2] {
        ["epoll", "uring"].map(|engine| {
            let example = example().display().to_string();
            let words = ["--engine", engine, "--listen", "127.0.0.1:{port}"].map(str::to_owned);
            let words = std::iter::once(example).chain(words).collect();
            RespServer { name: format!("duopoll-{engine}"), words }
        })
    }

    /// The command for a port.
    pub fn command(&self, port: u16) -> Command {
        let mut words = self.words.iter().map(|word| word.replace("{port}", &port.to_string()));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }
}

/// Whether RESP scenarios can run at all.
pub fn available() -> Result<(), String> {
    if process::have("redis-benchmark") {
        Ok(())
    } else {
        Err("`redis-benchmark` is not installed: the RESP scenarios are left out".into())
    }
}

fn example() -> PathBuf {
    process::target_folder().join("release/redis")
}

/// Builds this project's example, or says why there is none.
pub fn build_example() -> Result<(), String> {
    let example = ["--release", "--package", "duopoll-redis"];
    process::build("the Redis example", &example)
}

/// Measures one server: a short run to warm up and to learn its speed, then one that takes about
/// `measure_ms`.
pub fn run(
    server: &ServerProcess,
    addr: SocketAddr,
    core: usize,
    command: &str,
    pipeline: usize,
    measure_ms: u64,
) -> io::Result<Outcome> {
    let rss_start_kib = process::rss_kib(server.pid())?;
    if command == "get" {
        benchmark(addr, core, "set", 1, 100)?;
    }
    let warm = benchmark(addr, core, command, pipeline, 10_000 * (pipeline as u64).min(16))?;
    let count = (warm.rate * measure_ms as f64 / 1e3).max(1000.0) as u64;

    let cpu_ns = interrupts::server_cpu_time_ns(server.pid())?;
    let result = benchmark(addr, core, command, pipeline, count)?;
    let cpu_ns = interrupts::server_cpu_time_ns(server.pid())? - cpu_ns;
    Ok(Outcome {
        requests: count,
        requests_in_all: count,
        seconds: count as f64 / result.rate,
        server_cpu_ns: cpu_ns,
        p50_us: result.p50_us,
        p99_us: result.p99_us,
        // redis-benchmark prints no 99.9th percentile.
        p999_us: f64::NAN,
        max_us: result.max_us,
        rss_start_kib,
        rss_idle_kib: rss_start_kib,
        rss_busy_kib: process::rss_kib(server.pid())?,
        ..Outcome::default()
    })
}

struct Line {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

fn benchmark(
    addr: SocketAddr,
    core: usize,
    command: &str,
    pipeline: usize,
    count: u64,
) -> io::Result<Line> {
    let mut tool = Command::new("redis-benchmark");
    tool.args(["--csv", "-h", &addr.ip().to_string(), "-p", &addr.port().to_string()])
        .args(["-t", command, "-c", &CLIENTS.to_string()])
        .args(["-P", &pipeline.to_string(), "-n", &count.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    process::on_core(&mut tool, core);
    let mut child = tool.spawn()?;
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "redis-benchmark hangs"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text)?;
    }
    parse(&text).ok_or_else(|| io::Error::other(format!("redis-benchmark printed {text:?}")))
}

/// Parses `"GET","120000.00","0.2","0.1","0.2","0.3","0.4","0.5"`: test, requests a second, then
/// mean, minimum, p50, p95, p99 and maximum in milliseconds.
fn parse(text: &str) -> Option<Line> {
    let line = text.lines().rfind(|line| line.starts_with('"') && !line.contains("\"rps\""))?;
    let fields: Vec<f64> =
        line.split(',').skip(1).filter_map(|field| field.trim_matches('"').parse().ok()).collect();
    let [rate, _mean, _min, p50, _p95, p99, max] = fields[..] else {
        return None;
    };
    Some(Line { rate, p50_us: p50 * 1e3, p99_us: p99 * 1e3, max_us: max * 1e3 })
}

/// A folder for a RESP server to run in, so that it leaves nothing where the comparison runs.
pub fn scratch_folder() -> io::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("duopoll-compare-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_csv_is_understood() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                    \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                    \"GET\",\"125000.00\",\"0.223\",\"0.064\",\"0.215\",\"0.327\",\"0.399\",\"1.5\"\n";
        let line = parse(text).unwrap();
        assert_eq!(line.rate, 125_000.0);
        assert_eq!(line.p50_us, 215.0);
        assert_eq!(line.p99_us, 399.0);
        assert!(parse("").is_none());
    }

    #[test]
    fn a_server_needs_a_name_and_a_port() {
        let server = RespServer::parse("mine=target/redis --listen 127.0.0.1:{port}").unwrap();
        assert_eq!(server.name, "mine");
        assert_eq!(server.command(20_001).get_args().last().unwrap(), "127.0.0.1:20001");
        assert!(RespServer::parse("mine=target/redis").is_err());
        assert!(RespServer::parse("redis-server {port}").is_err());
    }
}
