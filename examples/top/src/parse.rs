//! What a server has said: the lines of `/metrics`, and the JSON of `/connections`.
//!
//! Of the figures those of duopoll's are kept, by the names without `duopoll_` and `_total`, which not everybody adds. What is no
//! figure is an error, which tells the line: nobody is to look at half of the truth.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Deserialize;

/// Connections that are kept of what a server tells.
const CONNECTIONS_MAX: usize = 1000;
/// Pollers that are kept.
const POLLERS_MAX: usize = 1024;
/// Of ids, peers and engines: an address of IPv6 with its port has fewer.
const NAME_CHARS_MAX: usize = 64;
/// Of a line that is wrong, as much is told.
const QUOTED_CHARS_MAX: usize = 60;

/// Which of the pollers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    /// All together, where nobody tells them apart.
    All,
    Number(u32),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::All => f.write_str("all"),
            Name::Number(number) => write!(f, "{number}"),
        }
    }
}

/// How often something took how long, since the server began.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    /// Bounds, and how many were at most that. In the order of the bounds.
    pub(crate) buckets: Vec<(f64, f64)>,
    /// Shares, and what is told for them, of servers that tell no buckets.
    pub(crate) quantiles: Vec<(f64, f64)>,
    pub(crate) sum: f64,
    pub(crate) count: f64,
}

/// The figures of a poller.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Poller {
    pub(crate) engine: String,
    pub(crate) figures: HashMap<String, f64>,
    pub(crate) histograms: HashMap<String, Histogram>,
}

/// Everything that `/metrics` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) pollers: BTreeMap<Name, Poller>,
    /// Of several servers together.
    pub(crate) server: HashMap<String, f64>,
    pub(crate) process: HashMap<String, f64>,
}

/// A connection, as `/connections` tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Connection {
    pub(crate) id: String,
    pub(crate) peer: Option<String>,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) unsent_bytes: u64,
}

/// What `/connections` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Connections {
    pub(crate) total: u64,
    pub(crate) connections: Vec<Connection>,
}

/// A line of the text format.
#[derive(Debug, PartialEq)]
struct Line<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

/// The figures of a text as Prometheus reads it, or what is wrong with it.
pub(crate) fn figures(text: &str) -> Result<Figures, String> {
    let mut figures = Figures::default();
    for (index, text) in text.lines().enumerate() {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let Some(line) = line(text) else {
            let quoted: String = text.chars().take(QUOTED_CHARS_MAX).collect();
            return Err(format!("line {} is no figure: {}", index + 1, quoted.escape_debug()));
        };
        if let Some(name) = line.name.strip_prefix("duopoll_") {
            figures.take(name.strip_suffix("_total").unwrap_or(name), &line);
        }
    }
    if figures.pollers.is_empty() {
        return Err("there are no figures of duopoll's".into());
    }
    for histogram in figures.pollers.values_mut().flat_map(|poller| poller.histograms.values_mut())
    {
        histogram.buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        histogram.quantiles.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    Ok(figures)
}

/// The connections of a JSON text, or what is wrong with it.
pub(crate) fn connections(text: &str) -> Result<Connections, String> {
    let mut connections: Connections =
        serde_json::from_str(text).map_err(|error| error.to_string().escape_debug().to_string())?;
    connections.connections.truncate(CONNECTIONS_MAX);
    for connection in &mut connections.connections {
        connection.id = clean(&connection.id);
        connection.peer = connection.peer.as_deref().map(clean);
    }
    Ok(connections)
}

/// A name as it may be shown: whoever answers shall not move the cursor.
fn clean(name: &str) -> String {
    let shown = |char: char| if char.is_ascii_graphic() { char } else { '?' };
    name.chars().take(NAME_CHARS_MAX).map(shown).collect()
}

impl Figures {
    fn take(&mut self, name: &str, line: &Line<'_>) {
        if let Some(name) = name.strip_prefix("server_") {
            *self.server.entry(name.to_owned()).or_default() += line.value;
            return;
        }
        // A proxy tells all pollers' together, with another prefix, and the process's among them.
        let (poller, name) = match (line.label("poller"), name.strip_prefix("pollers_")) {
            (Some(number), _) => match number.parse() {
                Ok(number) => (Name::Number(number), name),
                Err(_) => return,
            },
            (None, Some(name)) => {
                self.process.insert(name.to_owned(), line.value);
                (Name::All, name)
            }
            (None, None) => {
                self.process.insert(name.to_owned(), line.value);
                return;
            }
        };
        if self.pollers.len() >= POLLERS_MAX && !self.pollers.contains_key(&poller) {
            return;
        }
        let poller = self.pollers.entry(poller).or_default();
        if let Some(engine) = line.label("engine") {
            poller.engine = clean(engine);
        }
        poller.take(name, line);
    }
}

impl Poller {
    fn take(&mut self, name: &str, line: &Line<'_>) {
        let number = |label: &str| line.label(label).and_then(|text| text.parse::<f64>().ok());
        let (family, part) = match name.rsplit_once('_') {
            Some((family, part @ ("bucket" | "sum" | "count"))) => (family, part),
            _ => (name, ""),
        };
        match (part, number("le"), number("quantile")) {
            ("bucket", Some(bound), _) => {
                self.histogram(family).buckets.push((bound, line.value));
            }
            ("sum", ..) => self.histogram(family).sum = line.value,
            ("count", ..) => self.histogram(family).count = line.value,
            ("", _, Some(share)) => self.histogram(family).quantiles.push((share, line.value)),
            _ => {
                self.figures.insert(name.to_owned(), line.value);
            }
        }
    }

    fn histogram(&mut self, family: &str) -> &mut Histogram {
        self.histograms.entry(family.to_owned()).or_default()
    }
}

impl Line<'_> {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| &**value)
    }
}

/// `name{label="value",…} value timestamp`, of which the labels and the time may be missing.
fn line(text: &str) -> Option<Line<'_>> {
    let name_end = text.find(['{', ' ', '\t'])?;
    let (name, rest) = text.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    let time = words.next();
    let is_right = is_name(name)
        && time.is_none_or(|time| time.parse::<i64>().is_ok())
        && words.next().is_none();
    is_right.then_some(Line { name, labels, value })
}

/// The labels, and what is behind their brace.
fn labels(mut text: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once('=')?;
        let (value, rest) = quoted(rest.trim_start().strip_prefix('"')?)?;
        let name = name.trim();
        if !is_name(name) {
            return None;
        }
        labels.push((name, value));
        let rest = rest.trim_start();
        text = match rest.strip_prefix(',') {
            Some(rest) => rest,
            None if rest.starts_with('}') => rest,
            None => return None,
        };
    }
}

/// What is in quotes, and what is behind them.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || byte == b':';
    bytes.next().is_some_and(first) && bytes.all(|byte| first(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_sorted_by_whose_they_are() {
        let text = "# HELP duopoll_requests_total Requests.\n# TYPE duopoll_requests_total counter\n\
            duopoll_requests_total{poller=\"0\",engine=\"uring\"} 7\n\
            duopoll_requests{poller=\"10\",engine=\"epoll\",} 8 1700000000000\n\
            duopoll_memory_held_bytes 4096\n\
            duopoll_server_accepts_total{server=\"one\"} 2\n\
            duopoll_server_accepts_total{server=\"other\"} 3\n\
            process_cpu_seconds_total 1.5e3\n";
        let figures = figures(text).expect("figures");
        assert_eq!(figures.pollers.len(), 2);
        let first = &figures.pollers[&Name::Number(0)];
        assert_eq!((&*first.engine, first.figures["requests"]), ("uring", 7.0));
        assert_eq!(figures.pollers[&Name::Number(10)].figures["requests"], 8.0);
        assert_eq!(figures.process, HashMap::from([("memory_held_bytes".to_owned(), 4096.0)]));
        assert_eq!(figures.server["accepts"], 5.0);
    }

    #[test]
    fn a_proxy_tells_all_pollers_together() {
        let text = "proxy_clients_total 3\nduopoll_server_open_connections 1\n\
            duopoll_pollers_pollers 2\nduopoll_pollers_syscalls_total 9\n\
            duopoll_pollers_memory_held_bytes 4096\n";
        let figures = figures(text).expect("figures");
        assert_eq!(figures.pollers[&Name::All].figures["syscalls"], 9.0);
        assert_eq!(figures.process["memory_held_bytes"], 4096.0);
        assert_eq!(figures.server["open_connections"], 1.0);
    }

    #[test]
    fn timings_are_buckets_or_quantiles() {
        let text = "duopoll_turn_seconds_bucket{poller=\"0\",le=\"+Inf\"} 3\n\
            duopoll_turn_seconds_bucket{poller=\"0\",le=\"0.001\"} 2\n\
            duopoll_turn_seconds_sum{poller=\"0\"} 0.5\nduopoll_turn_seconds_count{poller=\"0\"} 3\n\
            duopoll_lag_seconds{poller=\"0\",quantile=\"0.99\"} 0.25\n";
        let figures = figures(text).expect("figures");
        let histograms = &figures.pollers[&Name::Number(0)].histograms;
        let turns = &histograms["turn_seconds"];
        assert_eq!(turns.buckets, [(0.001, 2.0), (f64::INFINITY, 3.0)]);
        assert_eq!((turns.sum, turns.count), (0.5, 3.0));
        assert_eq!(histograms["lag_seconds"].quantiles, [(0.99, 0.25)]);
    }

    #[test]
    fn labels_may_have_anything_in_them() {
        let text = r#"a{b="x\"y\\z\n{},=", c="" } -Inf"#;
        let labels = vec![("b", "x\"y\\z\n{},=".to_owned()), ("c", String::new())];
        assert_eq!(line(text), Some(Line { name: "a", labels, value: f64::NEG_INFINITY }));
    }

    #[test]
    fn what_is_no_figure_is_an_error_that_tells_the_line() {
        let wrong = [
            "<html><body>not here</body></html>",
            "duopoll_a",
            "duopoll_a{",
            "duopoll_a{b} 1",
            "duopoll_a{b=\"c} 1",
            "duopoll_a{b=\"c\\",
            "duopoll_a{b=\"c\"d=\"e\"} 1",
            "duopoll_a{b=\"c\"} one",
            "duopoll_a 1 2 3",
            "duopoll_a 1 late",
            "1duopoll 1",
            " 1",
            "\u{1b}[2J 1",
        ];
        for text in wrong {
            let error = figures(&format!("duopoll_x{{poller=\"0\"}} 1\n{text}\n"));
            let error = error.expect_err(text);
            assert!(error.starts_with("line 2 is no figure: "), "{error}");
            assert!(!error.contains('\u{1b}'), "{error}");
        }
        for text in ["", "# only words\n", "go_goroutines 7\n"] {
            figures(text).expect_err("there is nothing of duopoll's");
        }
    }

    #[test]
    fn connections_are_those_of_the_json() {
        let text = r#"{"total": 2, "connections": [
            {"id": "0x2", "peer": "[::1]:5", "received_bytes": 1, "sent_bytes": 2, "unsent_bytes": 3},
            {"id": "0x3", "peer": null, "received_bytes": 0, "sent_bytes": 0, "unsent_bytes": 0, "more": 1}]}"#;
        let told = connections(text).expect("connections");
        assert_eq!((told.total, told.connections.len()), (2, 2));
        assert_eq!(told.connections[0].peer.as_deref(), Some("[::1]:5"));
        let hostile = text.replace("[::1]:5", "\\u001b[2J\u{202e}x");
        let told = connections(&hostile).expect("connections");
        assert_eq!(told.connections[0].peer.as_deref(), Some("?[2J?x"));
        let deep = "[".repeat(1 << 20);
        let negative = text.replace("2,", "-2,");
        for wrong in ["", "{", "[]", "null", r#"{"total": 1}"#, &deep, &negative, &text[..90]] {
            connections(wrong).expect_err("no connections");
        }
    }
}
