//! The load generators, `wrk` for HTTP/1.1 and `h2load` for HTTP/2: their command lines and what they print.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::shape::{Ask, Shape};
use crate::process;

/// The one that every server has to use, by name as OpenSSL has it: else Go would choose another than the rest.
const CIPHER: &str = "TLS_AES_128_GCM_SHA256";

/// A run of a load generator.
pub struct Run<'a> {
    /// What is asked.
    pub shape: &'a Shape,
    /// The server.
    pub addr: SocketAddr,
    /// Where scripts and bodies are written.
    pub folder: &'a Path,
    /// The core, if it is pinned.
    pub core: Option<usize>,
}

/// What the generators say of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Right answers.
    pub requests: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Bytes received: all of them for `wrk`, those of bodies for `h2load`, which counts those of its warm-up too.
    pub bytes: u64,
    /// Whatever was wrong: failed connections, answers that are errors or late.
    pub errors: u64,
    /// Latencies in microseconds; NaN where the tool says none.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Run<'_> {
    fn url(&self) -> String {
        let scheme = if self.shape.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.addr, self.shape.ask.path())
    }

    fn command(&self, tool: &str) -> io::Result<Command> {
        let mut command = Command::new(tool);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // wrk has no option for the cipher.
        command.env("OPENSSL_CONF", self.file("openssl.cnf", OPENSSL)?);
        process::on_core(&mut command, self.core);
        Ok(command)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// Runs `wrk` for whole seconds, which is all that it can do.
    pub fn wrk(&self, seconds: u64) -> io::Result<Said> {
        let mut command = self.command("wrk")?;
        command
            .args(["-t", &self.shape.threads.to_string()])
            .args(["-c", &self.shape.connections.to_string()])
            .args(["-d", &format!("{}s", seconds.max(1)), "--latency", "-s"])
            .arg(self.file("wrk.lua", script(self.shape))?)
            .arg(self.url());
        let text = finish(command.spawn()?)?;
        parse_wrk(&text).ok_or_else(|| io::Error::other(format!("wrk printed {text:?}")))
    }

    /// Runs `h2load` for a time after a warm-up, and calls `at` with its process id when the measured part begins and when it
    /// ends.
    pub fn h2load(
        &self,
        warm_ms: u64,
        measure_ms: u64,
        mut at: impl FnMut(Moment, u32) -> io::Result<()>,
    ) -> io::Result<Said> {
        let mut command = self.h2load_command()?;
        command
            .args([&format!("--duration={measure_ms}ms"), &format!("--warm-up-time={warm_ms}ms")])
            .arg(self.url());
        let mut child = command.spawn()?;
        let mut text = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut moments = Moments::new(self.shape.threads);
            for line in BufReader::new(stdout).lines() {
                let line = line?;
                if let Some(moment) = moments.look(&line) {
                    at(moment, child.id())?;
                }
                text += &line;
                text.push('\n');
            }
        }
        text += &finish(child)?;
        parse_h2load(&text).ok_or_else(|| io::Error::other(format!("h2load printed {text:?}")))
    }

    /// Has `h2load` send a few requests on each stream, so that status and length of all are known.
    pub fn h2load_few(&self) -> io::Result<Said> {
        let mut command = self.h2load_command()?;
        let requests = self.shape.connections * self.shape.streams * 2;
        command.args(["-n", &requests.to_string()]).arg(self.url());
        let text = finish(command.spawn()?)?;
        let said = parse_h2load(&text)
            .ok_or_else(|| io::Error::other(format!("h2load printed {text:?}")))?;
        let bytes = (requests * self.shape.ask.answer().len()) as u64;
        if said.requests != requests as u64 || said.bytes != bytes || said.errors > 0 {
            let wanted = format!("of {requests} answers with {bytes} bytes of bodies");
            return Err(io::Error::other(format!("{wanted} h2load got {said:?}")));
        }
        Ok(said)
    }

    fn h2load_command(&self) -> io::Result<Command> {
        let shape = self.shape;
        let mut command = self.command("h2load")?;
        command
            .args(["-t", &shape.threads.to_string(), "-c", &shape.connections.to_string()])
            .args(["-m", &shape.streams.to_string(), &format!("--tls13-ciphers={CIPHER}")]);
        if let Some(body) = shape.ask.posts() {
            command.arg("-d").arg(self.file("body", body)?);
        }
        if matches!(shape.ask, Ask::Unary | Ask::Messages) {
            command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        }
        Ok(command)
    }
}

/// What OpenSSL is told.
const OPENSSL: &str = "\
openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = default
[default]
Ciphersuites = TLS_AES_128_GCM_SHA256
";

/// What `wrk` sends, and how it tells the end: in figures of full precision.
fn script(shape: &Shape) -> String {
    let mut script = String::new();
    if let Some(body) = shape.ask.posts() {
        // A body of the same byte throughout.
        let byte = body.first().copied().unwrap_or_default();
        script += &format!(
            "wrk.method = \"POST\"\nwrk.body = string.rep(\"\\{byte}\", {})\n",
            body.len()
        );
    }
    if shape.streams > 1 {
        script += &format!(
            "init = function(args)
  all = string.rep(wrk.format(), {})
end
request = function()
  return all
end
",
            shape.streams
        );
    }
    script
        + "done = function(summary, latency, requests)
  local errors = summary.errors
  print(string.format(\"outcome %d %d %d %d %d %d %d %d %.3f %.3f %.3f %.3f\",
    summary.duration, summary.requests, summary.bytes,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max))
end
"
}

/// Waits for the end; what was printed.
fn finish(child: Child) -> io::Result<String> {
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {} {}", output.status, text.trim(), complaint.trim())))
}

/// Parses the line that the script prints.
pub fn parse_wrk(text: &str) -> Option<Said> {
    let line = text.lines().find_map(|line| line.strip_prefix("outcome "))?;
    let fields: Vec<f64> = line.split(' ').map_while(|field| field.parse().ok()).collect();
    let [us, requests, bytes, connect, read, write, status, late, p50, p99, p999, max] = fields[..]
    else {
        return None;
    };
    Some(Said {
        requests: requests as u64,
        seconds: us / 1e6,
        bytes: bytes as u64,
        errors: (connect + read + write + status + late) as u64,
        p50_us: p50,
        p99_us: p99,
        p999_us: p999,
        max_us: max,
    })
}

/// Parses what `h2load` prints at the end.
pub fn parse_h2load(text: &str) -> Option<Said> {
    let find = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let rate = number_before(find("finished in ")?, " req/s")?;
    let requests = find("requests: ")?;
    let [done, succeeded, failed, errored, late] =
        [" done", " succeeded", " failed", " errored", " timeout"]
            .map(|word| number_before(requests, word));
    let (done, succeeded) = (done?, succeeded?);
    // The heads of the right ones are counted when they come, which may be before the measured part: their number says nothing.
    let status = find("status codes: ")?;
    let classes = [" 3xx", " 4xx", " 5xx"].into_iter();
    let wrong = classes.map(|class| number_before(status, class)).sum::<Option<f64>>()?;
    let bytes =
        find("traffic: ")?.strip_suffix(" data")?.rsplit(['(', ')']).nth(1)?.parse().ok()?;
    // Smallest, longest, mean, deviation.
    let longest = find("time for request:")?.split_whitespace().nth(1)?;
    Some(Said {
        requests: succeeded as u64,
        seconds: succeeded / rate,
        bytes,
        errors: (failed? + errored? + late? + wrong).max(done - succeeded) as u64,
        p50_us: f64::NAN,
        p99_us: f64::NAN,
        p999_us: f64::NAN,
        max_us: micros(longest)?,
    })
}

/// The number in front of a word.
fn number_before(line: &str, word: &str) -> Option<f64> {
    let before = &line[..line.find(word)?];
    before.rsplit([' ', ',']).next()?.parse().ok()
}

/// A time such as `20.55ms`, in microseconds.
fn micros(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let scale = match &text[unit..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(text[..unit].parse::<f64>().ok()? * scale)
}

/// A moment in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The measured part begins.
    Begin,
    /// It is over.
    End,
}

/// Finds them in what `h2load` prints while it runs: when the last of its threads begins, and when the first ends.
pub struct Moments {
    to_begin: usize,
    is_over: bool,
}

impl Moments {
    /// Of so many threads.
    pub fn new(threads: usize) -> Moments {
        Moments { to_begin: threads, is_over: false }
    }

    /// Whether the line tells one.
    pub fn look(&mut self, line: &str) -> Option<Moment> {
        if line.starts_with("Main benchmark duration is started") {
            self.to_begin = self.to_begin.saturating_sub(1);
            return (self.to_begin == 0).then_some(Moment::Begin);
        }
        if line.starts_with("Main benchmark duration is over") && !self.is_over {
            self.is_over = true;
            return Some(Moment::End);
        }
        None
    }
}
