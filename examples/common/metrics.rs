//! What `--metrics` serves beside an example: `/metrics` for Prometheus, and `/connections`, the busiest of them, as JSON.
//!
//! A server of its own on the pollers of the other, so that it costs no thread, and that its answers come as late as anybody's where
//! a poller is held up. HTTP as far as those need it who read figures: GET and HEAD without bodies, one after another on a connection.

use std::cmp::Reverse;
use std::fmt::Write;
use std::io;
use std::time::Duration;

use duopoll::{
    Connection, EventLoop, Figure, Kind, Limits, Listener, Pollers, Server, ServerStats, Slice,
    Stats, Timings, WeakServer,
};

/// Connections of `/connections`.
const CONNECTIONS_TOLD_MAX: usize = 200;
/// Whoever reads figures is one, or a few.
const CONNECTIONS_MAX: usize = 16;
/// A request with its head.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// How long a head may take to come, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may wait for its next request: longer than scrapers do.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The buckets of times: two a doubling from a microsecond to 17 seconds, which are bounds of the library's own too.
const TIME_BITS: std::ops::RangeInclusive<u32> = 10..=34;
/// Those of tasks in a turn: one a doubling.
const BATCH_BITS: std::ops::RangeInclusive<u32> = 1..=12;

/// Serves the figures of a server. It ends with the server's pollers, and may be ended before.
pub(crate) fn serve(listener: Listener, pollers: &Pollers, told: WeakServer) -> io::Result<Server> {
    let mut limits = Limits::default();
    // Of whoever asks and does not read.
    limits.input_high_bytes = 16 << 10;
    limits.output_high_bytes = 64 << 10;
    EventLoop::builder()
        .on(pollers.clone())
        .limits(limits)
        .max_connections(CONNECTIONS_MAX)
        .request_timeout(PATIENCE)
        .write_timeout(PATIENCE)
        .idle_timeout(IDLE_TIMEOUT)
        .on_request(async move |connection: &mut Connection| {
            match answer(connection, &told).await {
                // Who leaves or is too slow is no error of the server's, whose figures these would be.
                Err(_) => {
                    connection.control().abort();
                    Ok(())
                }
                Ok(()) => Ok(()),
            }
        })
        .serve(listener)
}

/// What a head has asked for.
struct Request {
    is_head: bool,
    path: String,
    /// Another may come behind it.
    goes_on: bool,
}

/// A status with the fields that belong to it, and a text.
struct Answer {
    status: &'static str,
    fields: &'static str,
    text: String,
}

impl Answer {
    fn plain(status: &'static str, text: &str) -> Answer {
        Answer { status, fields: "Content-Type: text/plain\r\n", text: format!("{text}\n") }
    }
}

async fn answer(connection: &mut Connection, told: &WeakServer) -> io::Result<()> {
    let (request, answer) = match read_head(connection).await? {
        Ok(request) => {
            let answer = match request.path.as_str() {
                "/metrics" => metrics(told),
                "/connections" => connections(told).await,
                _ => Answer::plain("404 Not Found", "/metrics and /connections"),
            };
            (request, answer)
        }
        // What is behind it is not known to be a request.
        Err(answer) => (Request { is_head: false, path: String::new(), goes_on: false }, answer),
    };
    let Answer { status, fields, text } = answer;
    let end = if request.goes_on { "" } else { "Connection: close\r\n" };
    let head = format!("HTTP/1.1 {status}\r\n{fields}{end}Content-Length: {}\r\n\r\n", text.len());
    connection.write(head.as_bytes())?;
    if !request.is_head {
        connection.push(text.into_bytes());
    }
    connection.flush().await?;
    if !request.goes_on {
        connection.input_mut().clear();
        connection.control().close();
    }
    Ok(())
}

/// The next request, or what is to be said of it.
async fn read_head(connection: &mut Connection) -> io::Result<Result<Request, Answer>> {
    let mut left = HEAD_BYTES_MAX;
    let Some(first) = read_line(connection, &mut left).await? else { return Ok(Err(too_long())) };
    let mut words = text_of(&first).split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, words.next())
    else {
        return Ok(Err(bad()));
    };
    let mut goes_on = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return Ok(Err(bad())),
    };
    loop {
        let Some(line) = read_line(connection, &mut left).await? else {
            return Ok(Err(too_long()));
        };
        let line = text_of(&line);
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { return Ok(Err(bad())) };
        let has = |word: &str| name.eq_ignore_ascii_case(word);
        let value = value.trim();
        // A body would be read as the next request.
        if has("transfer-encoding")
            || has("content-length") && value != "0"
            || has("connection") && value.to_ascii_lowercase().contains("close")
        {
            goes_on = false;
        }
    }
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => {
            return Ok(Err(Answer {
                fields: "Content-Type: text/plain\r\nAllow: GET, HEAD\r\n",
                ..Answer::plain("405 Method Not Allowed", "GET and HEAD")
            }));
        }
    };
    let path = target.split('?').next().unwrap_or_default().to_owned();
    Ok(Ok(Request { is_head, path, goes_on }))
}

/// A line, of as many bytes as are left; none if it is longer.
async fn read_line(connection: &mut Connection, left: &mut usize) -> io::Result<Option<Slice>> {
    match connection.until(b'\n', *left).await {
        Ok(line) => {
            *left -= line.len();
            Ok(Some(line))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

/// A line without its end; none of what is asked for is anything but ASCII.
fn text_of(line: &[u8]) -> &str {
    std::str::from_utf8(line).unwrap_or("?").trim_end_matches(['\r', '\n'])
}

fn too_long() -> Answer {
    Answer::plain("431 Request Header Fields Too Large", "the head is too long")
}

fn bad() -> Answer {
    Answer::plain("400 Bad Request", "that is no HTTP/1")
}

fn gone() -> Answer {
    Answer::plain("503 Service Unavailable", "the server is gone")
}

/// What Prometheus reads.
fn metrics(told: &WeakServer) -> Answer {
    let Some(server) = told.upgrade() else { return gone() };
    let pollers = server.pollers();
    let labels = labels(pollers);
    let mut text = String::new();
    let each: Vec<Vec<Figure>> =
        pollers.stats_of_each().iter().map(|stats| stats.figures().collect()).collect();
    for (index, figure) in Stats::default().figures().enumerate() {
        if figure.is_shared {
            continue;
        }
        let name = family(&mut text, "duopoll_", &figure);
        for (labels, figures) in labels.iter().zip(&each) {
            let _ = writeln!(text, "{name}{{{labels}}} {}", figures[index].value);
        }
    }
    let all = pollers.stats().figures();
    for figure in all.filter(|figure| figure.is_shared) {
        let name = family(&mut text, "duopoll_", &figure);
        let _ = writeln!(text, "{name} {}", figure.value);
    }
    let stats: ServerStats = server.server_stats();
    for figure in stats.figures() {
        let name = family(&mut text, "duopoll_server_", &figure);
        let _ = writeln!(text, "{name} {}", figure.value);
    }
    histograms(&mut text, &labels, &pollers.timings_of_each());
    Answer { status: "200 OK", fields: "Content-Type: text/plain; version=0.0.4\r\n", text }
}

/// Those of each poller.
fn labels(pollers: &Pollers) -> Vec<String> {
    let reports = pollers.engine_reports();
    let labels = reports.iter().enumerate().map(|(index, report)| {
        let engine = report.engine;
        format!("poller=\"{index}\",engine=\"{engine}\"")
    });
    labels.collect()
}

/// The lines in front of a figure's values, and its name.
fn family(text: &mut String, prefix: &str, figure: &Figure) -> String {
    let (kind, end) = match figure.kind {
        Kind::Counter => ("counter", "_total"),
        _ => ("gauge", ""),
    };
    let name = format!("{prefix}{}{end}", figure.name);
    let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", figure.help);
    name
}

fn histograms(text: &mut String, labels: &[String], timings: &[Timings]) {
    // In units of the library's: nanoseconds, and tasks.
    let halves = |bits: u32| [(1u64 << bits) - 1, (3u64 << (bits - 1)) - 1];
    let times: Vec<u64> = TIME_BITS.flat_map(halves).collect();
    let batches: Vec<u64> = BATCH_BITS.map(|bits| (1 << bits) - 1).collect();
    let each: Vec<_> = timings.iter().map(Timings::each).collect();
    for index in 0..each.first().map_or(0, |measured| measured.len()) {
        let (name, help) = (each[0][index].name, each[0][index].help);
        let name = format!("duopoll_{name}");
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (labels, measured) in labels.iter().zip(&each) {
            let (histogram, unit) = (measured[index].values, measured[index].scale);
            let (bounds, digits) = if unit == 1.0 { (&batches, 0) } else { (&times, 9) };
            let mut values = histogram.buckets().peekable();
            let mut count = 0;
            for bound in bounds {
                while let Some((_, more)) = values.next_if(|(value, _)| value <= bound) {
                    count += more;
                }
                let le = *bound as f64 * unit;
                let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{le:.digits$}\"}} {count}");
            }
            count += values.map(|(_, more)| more).sum::<u64>();
            let sum = histogram.sum() as f64 * unit;
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "{name}_sum{{{labels}}} {sum:.digits$}");
            let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
        }
    }
}

/// The open connections that have moved the most bytes.
async fn connections(told: &WeakServer) -> Answer {
    let Some(server) = told.upgrade() else { return gone() };
    let controls = server.connections().await;
    let total = controls.len();
    let mut moved: Vec<_> = controls
        .iter()
        .map(|control| (control.received_bytes(), control.sent_bytes(), control))
        .collect();
    let most = |(received, sent, _): &(u64, u64, _)| Reverse(received + sent);
    if total > CONNECTIONS_TOLD_MAX {
        moved.select_nth_unstable_by_key(CONNECTIONS_TOLD_MAX, most);
        moved.truncate(CONNECTIONS_TOLD_MAX);
    }
    moved.sort_unstable_by_key(most);
    let mut text = format!("{{\"total\": {total}, \"connections\": [");
    for (index, (received, sent, control)) in moved.into_iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // On a Unix socket peers have no address.
        let peer = control.peer_addr().map_or("null".into(), |peer| format!("\"{peer}\""));
        let (id, unsent) = (control.id(), control.unsent_bytes());
        let _ = write!(
            text,
            "{comma}\n{{\"id\": \"{id:#x}\", \"peer\": {peer}, \"received_bytes\": {received}, \
             \"sent_bytes\": {sent}, \"unsent_bytes\": {unsent}}}"
        );
    }
    text += "]}\n";
    Answer { status: "200 OK", fields: "Content-Type: application/json\r\n", text }
}
