//! Results: their form, the figures derived from them, and four ways to write them down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disturbance::Disturbance;
use crate::load::Outcome;
use crate::plan::Step;
use crate::servers::Role;
use crate::stats::{Estimate, estimate, median, minimum};
use crate::trace::Calls;

/// By which part a yardstick may be off its usual time before the round counts as disturbed.
const SPREAD_MAX: f64 = 0.1;

/// The files of a report, and the folder of its plots.
const JSON: &str = "compare.json";
const MARKDOWN: &str = "compare.md";
const PLOTS: &str = "svg";

mod environment;
mod markdown;
mod svg;
pub mod text;

/// A whole run.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// The command line.
    pub command: String,
    /// Machine, kernel and versions, as pairs of a name and a value.
    pub environment: Vec<(String, String)>,
    /// What was left out or went wrong.
    pub notes: Vec<String>,
    /// How long the run took.
    pub seconds: f64,
    /// A table a scenario.
    pub tables: Vec<Table>,
}

impl Report {
    /// An empty report of this machine.
    pub fn new(command: String, notes: Vec<String>) -> Self {
        let environment = environment::describe();
        Report { command, environment, notes, seconds: 0.0, tables: Vec::new() }
    }

    /// What an earlier run has written to a folder.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let path = folder.join(JSON);
        let text = fs::read(&path).map_err(|error| about(&path, error))?;
        let mut report: Report =
            serde_json::from_slice(&text).map_err(|error| about(&path, error.into()))?;
        for table in &mut report.tables {
            table.summarise();
        }
        Ok(report)
    }

    /// Adds what an earlier run has told.
    pub fn go_on_from(&mut self, earlier: Report) {
        self.notes.splice(0..0, earlier.notes);
        self.notes.dedup();
        self.seconds = earlier.seconds;
        self.tables = earlier.tables;
    }

    /// Adds a table that was measured now, in the place of one of the same scenario if there is one.
    pub fn add(&mut self, table: Table) {
        let table = Table { revision: self.revision().unwrap_or_default().to_owned(), ..table };
        match self.tables.iter_mut().find(|other| other.scenario == table.scenario) {
            Some(older) => *older = table,
            None => self.tables.push(table),
        }
    }

    fn revision(&self) -> Option<&str> {
        let (_, revision) = self.environment.iter().find(|(name, _)| name == environment::OURS)?;
        Some(revision)
    }
}

/// The results of a scenario.
#[derive(Serialize, Deserialize)]
pub struct Table {
    /// The scenario's name.
    pub scenario: String,
    /// Its title.
    pub title: String,
    /// The revision of this project that was measured.
    #[serde(default)]
    pub revision: String,
    /// The server that the first ratio refers to.
    pub yardstick: String,
    /// Warm-up and measured window, in milliseconds.
    pub warm_ms: u64,
    /// See there.
    pub measure_ms: u64,
    /// Silent connections, for the memory of each.
    pub idle: usize,
    /// Rounds that stayed disturbed, however often they were repeated; the first one is 1.
    pub disturbed: Vec<usize>,
    /// A row a server.
    pub rows: Vec<Row>,
    /// What the rows say, in the same order.
    #[serde(skip_deserializing)]
    pub summaries: Vec<Summary>,
}

/// The samples of a server.
#[derive(Serialize, Deserialize)]
pub struct Row {
    /// The server's name.
    pub server: String,
    /// What it stands for.
    pub role: Role,
    /// It is the server of this name, of another revision.
    pub older: Option<String>,
    /// A sample a round; none where the server sat out or failed.
    pub samples: Vec<Option<Sample>>,
    /// System calls, if they were counted.
    pub calls: Option<Calls>,
    /// Instructions a request, if they were counted.
    pub instructions: Option<f64>,
}

impl Row {
    /// A row without samples.
    pub fn new(server: &str, role: Role, rounds: usize) -> Self {
        let samples = vec![None; rounds];
        let (server, older, calls, instructions) = (server.to_owned(), None, None, None);
        Row { server, role, older, samples, calls, instructions }
    }

    /// The same server of another revision.
    pub fn of_revision(&self, revision: &str) -> Self {
        let server = format!("{}@{revision}", self.server);
        let row = Row::new(&server, self.role, self.samples.len());
        Row { older: Some(self.server.clone()), ..row }
    }

    fn each(&self, figure: impl Fn(&Sample) -> f64) -> impl Iterator<Item = f64> {
        self.samples.iter().flatten().map(figure)
    }
}

/// One run of the load generator against one server.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Told")]
pub struct Sample {
    /// CPU time of the server a request, in microseconds.
    pub cpu_us: f64,
    /// Share of its core that the client used.
    pub client_load: f64,
    /// Share of its core that the server used.
    pub server_load: f64,
    /// Requests a second.
    pub rate: f64,
    /// What else the machine did.
    pub disturbance: Disturbance,
    /// What the load generator said.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What it said of the same load without slow senders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alone: Option<Outcome>,
}

/// What a sample is made of.
#[derive(Deserialize)]
struct Told {
    #[serde(flatten)]
    outcome: Outcome,
    alone: Option<Outcome>,
    disturbance: Disturbance,
}

impl From<Told> for Sample {
    fn from(told: Told) -> Self {
        Sample { alone: told.alone, disturbance: told.disturbance, ..told.outcome.into() }
    }
}

impl From<Outcome> for Sample {
    fn from(outcome: Outcome) -> Self {
        let requests = outcome.requests as f64;
        // Some tools do not tell of their own time.
        let client_load = match outcome.client_cpu_ns {
            0 => f64::NAN,
            cpu_ns => cpu_ns as f64 / 1e9 / outcome.seconds,
        };
        Sample {
            cpu_us: outcome.server_cpu_ns as f64 / 1e3 / requests,
            client_load,
            server_load: outcome.server_cpu_ns as f64 / 1e9 / outcome.seconds,
            rate: requests / outcome.seconds,
            disturbance: Disturbance::default(),
            outcome,
            alone: None,
        }
    }
}

/// What the samples of a server come to. Figures that do not exist are NaN, `null` in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// CPU time a request in microseconds, median of the rounds.
    pub cpu_us: f64,
    /// The same, minimum of the rounds.
    pub cpu_us_min: f64,
    /// CPU time relative to the yardstick, of the rounds' own ratios.
    pub to_yardstick: Estimate,
    /// CPU time relative to the better floor, as above.
    pub to_floor: Estimate,
    /// CPU time relative to the same server of another revision, as above.
    pub to_older: Estimate,
    /// Requests a second, median, as the following ones.
    pub rate: f64,
    /// Latency in microseconds.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
    /// Datagrams lost in all rounds.
    pub lost: f64,
    /// Median latency relative to that without slow senders: the median of the rounds' own ratios.
    pub p50_to_alone: f64,
    /// The same of the 99th percentile.
    pub p99_to_alone: f64,
    /// Share of its core that the server used.
    pub server_load: f64,
    /// Share of its core that the client used.
    pub client_load: f64,
    /// Share of a core that everything else on the machine used, or its host kept: a disturbance.
    pub other_load: f64,
    /// Resident memory in KiB at the end of the window.
    pub rss_kib: f64,
    /// Resident memory in KiB before any connection.
    pub rss_start_kib: f64,
    /// Resident memory in KiB after the close.
    pub rss_settled_kib: f64,
    /// Resident memory in KiB an idle connection.
    pub rss_idle_kib_each: f64,
}

impl Table {
    /// Summarises the rows of a step.
    pub fn new(step: &Step, yardstick: &str, rows: Vec<Row>) -> Self {
        let idle = match &step.scenario.work {
            crate::scenario::Work::Load(shape) => shape.idle,
            crate::scenario::Work::Proxy { shape, .. } => shape.idle,
            crate::scenario::Work::Resp { .. }
            | crate::scenario::Work::Udp(_)
            | crate::scenario::Work::Quic(_) => 0,
            crate::scenario::Work::Web(shape) => shape.idle(),
        };
        let mut table = Table {
            scenario: step.scenario.name.clone(),
            title: step.scenario.title.clone(),
            revision: String::new(),
            yardstick: yardstick.to_owned(),
            warm_ms: step.warm_ms,
            measure_ms: step.measure_ms,
            idle,
            disturbed: disturbed(&rows, yardstick).iter().map(|(round, _)| round + 1).collect(),
            rows,
            summaries: Vec::new(),
        };
        table.summarise();
        table
    }

    fn summarise(&mut self) {
        let summary = |row| summarise(row, &self.rows, &self.yardstick, self.idle);
        self.summaries = self.rows.iter().map(summary).collect();
    }

    /// Whether it has what a step would measure, for as long.
    pub fn is_of(&self, step: &Step) -> bool {
        let rounds = self.rows.iter().map(|row| row.samples.len()).max();
        self.scenario == step.scenario.name
            && rounds == Some(step.rounds)
            && (self.warm_ms, self.measure_ms) == (step.warm_ms, step.measure_ms)
    }

    /// Whether a figure exists in any row, and so deserves a column.
    fn has(&self, figure: impl Fn(&Summary) -> f64) -> bool {
        self.summaries.iter().any(|summary| figure(summary).is_finite())
    }

    /// Rows with their summaries.
    fn lines(&self) -> impl Iterator<Item = (&Row, &Summary)> {
        self.rows.iter().zip(&self.summaries)
    }
}

fn summarise(row: &Row, rows: &[Row], yardstick: &str, idle: usize) -> Summary {
    let middle = |figure: fn(&Sample) -> f64| median(row.each(figure));
    let is_yardstick = |other: &&Row| other.server == yardstick;
    let is_floor = |other: &&Row| other.role == Role::Floor;
    let is_older = |other: &&Row| other.older.as_ref() == Some(&row.server);
    let kib = |value: u64| value as f64;
    Summary {
        cpu_us: middle(|sample| sample.cpu_us),
        cpu_us_min: minimum(row.each(|sample| sample.cpu_us)),
        to_yardstick: paired(row, &rows.iter().filter(is_yardstick).collect::<Vec<_>>()),
        to_floor: paired(row, &rows.iter().filter(is_floor).collect::<Vec<_>>()),
        to_older: paired(row, &rows.iter().filter(is_older).collect::<Vec<_>>()),
        rate: middle(|sample| sample.rate),
        p50_us: middle(|sample| sample.outcome.p50_us),
        p99_us: middle(|sample| sample.outcome.p99_us),
        p999_us: middle(|sample| sample.outcome.p999_us),
        lost: row
            .each(|sample| sample.outcome.lost.map_or(f64::NAN, |lost| lost as f64))
            .reduce(|all, lost| all + lost)
            .unwrap_or(f64::NAN),
        p50_to_alone: to_alone(row, |outcome| outcome.p50_us),
        p99_to_alone: to_alone(row, |outcome| outcome.p99_us),
        server_load: middle(|sample| sample.server_load),
        client_load: middle(|sample| sample.client_load),
        other_load: middle(|sample| sample.disturbance.sum()),
        rss_kib: median(row.each(|sample| kib(sample.outcome.rss_busy_kib))),
        rss_start_kib: median(row.each(|sample| kib(sample.outcome.rss_start_kib))),
        rss_settled_kib: median(
            row.each(|sample| sample.outcome.rss_settled_kib.map_or(f64::NAN, kib)),
        ),
        rss_idle_kib_each: if idle == 0 {
            f64::NAN
        } else {
            median(row.each(|sample| {
                let outcome = &sample.outcome;
                (kib(outcome.rss_idle_kib) - kib(outcome.rss_start_kib)) / idle as f64
            }))
        },
    }
}

/// Rounds in which somebody was disturbed, or in which the yardstick took another time than usual, and how much: the worst
/// share of a processor that others had, or the part by which the yardstick was off.
pub fn disturbed(rows: &[Row], yardstick: &str) -> Vec<(usize, f64)> {
    let usual = rows
        .iter()
        .find(|row| row.server == yardstick)
        .map_or(f64::NAN, |row| median(row.each(|s| s.cpu_us)));
    let much = |row: &Row, round: usize| {
        let sample = row.samples.get(round)?.as_ref()?;
        let off = if row.server == yardstick { (sample.cpu_us / usual - 1.0).abs() } else { 0.0 };
        let disturbance = sample.disturbance;
        (disturbance.is_much() || off > SPREAD_MAX).then(|| disturbance.sum().max(off))
    };
    let rounds = rows.iter().map(|row| row.samples.len()).max().unwrap_or(0);
    let worst = |round| rows.iter().filter_map(|row| much(row, round)).reduce(f64::max);
    (0..rounds).filter_map(|round| Some((round, worst(round)?))).collect()
}

/// A row's CPU time to the best of `others` in the same round, over all rounds.
fn paired(row: &Row, others: &[&Row]) -> Estimate {
    estimate(row.samples.iter().enumerate().map(|(round, sample)| {
        let best =
            minimum(others.iter().filter_map(|other| {
                other.samples.get(round)?.as_ref().map(|sample| sample.cpu_us)
            }));
        sample.as_ref().map_or(f64::NAN, |sample| sample.cpu_us / best)
    }))
}

/// The median over the rounds of a figure with slow senders to that without.
fn to_alone(row: &Row, figure: fn(&Outcome) -> f64) -> f64 {
    median(row.each(|sample| {
        let alone = sample.alone.as_ref().map_or(f64::NAN, figure);
        figure(&sample.outcome) / alone
    }))
}

/// Makes the folder of a report, and looks whether its files can be written, without changing them.
///
/// # Errors
/// What cannot be written, by its path.
pub fn prepare(folder: &Path) -> io::Result<()> {
    let plots = folder.join(PLOTS);
    fs::create_dir_all(&plots).map_err(|error| about(&plots, error))?;
    for path in [folder.join(JSON), folder.join(MARKDOWN), plots.join(".new")] {
        let is_new = !path.exists();
        let opened = fs::OpenOptions::new().append(true).create(true).open(&path);
        opened.map_err(|error| about(&path, error))?;
        if is_new {
            fs::remove_file(&path).map_err(|error| about(&path, error))?;
        }
    }
    Ok(())
}

/// Writes `compare.md`, `compare.json` and the plots.
pub fn write(report: &Report, folder: &Path) -> io::Result<()> {
    let write =
        |path: PathBuf, text: String| fs::write(&path, text).map_err(|error| about(&path, error));
    let plots = folder.join(PLOTS);
    fs::create_dir_all(&plots).map_err(|error| about(&plots, error))?;
    write(folder.join(JSON), serde_json::to_string_pretty(report)?)?;
    write(folder.join(MARKDOWN), markdown::report(report))?;
    for table in &report.tables {
        write(plots.join(format!("{}.svg", table.scenario)), svg::plot(table))?;
    }
    Ok(())
}

/// An error with the path that it is about.
fn about(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A figure with as many digits as it deserves; `–` where there is none.
fn figure(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}

/// Microseconds with about four digits.
fn micros(value: f64) -> String {
    figure(
        value,
        if value < 10.0 {
            3
        } else if value < 100.0 {
            2
        } else if value < 1000.0 {
            1
        } else {
            0
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(server: &str, role: Role, cpu_us: &[Option<f64>]) -> Row {
        let sample = |cpu_us: f64| {
            Sample::from(Outcome {
                requests: 1000,
                seconds: 1.0,
                server_cpu_ns: (cpu_us * 1e6) as u64,
                ..Outcome::default()
            })
        };
        let mut row = Row::new(server, role, cpu_us.len());
        row.samples = cpu_us.iter().map(|cpu_us| cpu_us.map(sample)).collect();
        row
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The second round is twice as slow for everyone.
        let rows = [
            row("classic", Role::Yardstick, &[Some(4.0), Some(8.0)]),
            row("floor", Role::Floor, &[Some(2.0), Some(4.0)]),
            row("peer", Role::Peer, &[None, Some(10.0)]),
        ];
        let peer = summarise(&rows[2], &rows, "classic", 0);
        assert_eq!(peer.to_yardstick.median, 1.25);
        assert_eq!(peer.to_floor.median, 2.5);
        assert_eq!(peer.cpu_us, 10.0);
        assert!(peer.rss_idle_kib_each.is_nan());
        let floor = summarise(&rows[1], &rows, "classic", 0);
        assert_eq!(floor.to_yardstick, Estimate { median: 0.5, low: 0.5, high: 0.5 });
    }

    #[test]
    fn others_and_an_odd_yardstick_disturb_a_round() {
        let of = |cpu_us: [f64; 4]| cpu_us.map(Some);
        let mut rows = [
            row("classic", Role::Yardstick, &of([4.0, 4.1, 5.0, 4.0])),
            row("peer", Role::Peer, &of([8.0, 8.0, 8.0, 16.0])),
        ];
        assert_eq!(
            disturbed(&rows, "classic").iter().map(|(round, _)| *round).collect::<Vec<_>>(),
            [2]
        );
        if let Some(sample) = &mut rows[1].samples[3] {
            sample.disturbance.others = 0.5;
        }
        assert_eq!(disturbed(&rows, "classic")[1], (3, 0.5));
    }

    fn table(scenario: &str, cpu_us: &[Option<f64>]) -> Table {
        let rows = vec![row("classic", Role::Yardstick, cpu_us)];
        let mut table = Table {
            scenario: scenario.into(),
            title: "Echo".into(),
            revision: String::new(),
            yardstick: "classic".into(),
            warm_ms: 1,
            measure_ms: 2,
            idle: 0,
            disturbed: vec![2],
            rows,
            summaries: Vec::new(),
        };
        table.summarise();
        table
    }

    fn folder(of: &str) -> PathBuf {
        std::env::temp_dir().join(format!("duopoll-{of}-{}", std::process::id()))
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = folder("report");
        let table = table("echo", &[Some(4.0), None]);
        let mut report = Report::new("compare".into(), vec!["a note".into()]);
        report.tables.push(table);
        write(&report, &folder).unwrap();
        let read = Report::read(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&report).unwrap());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = folder("prepared");
        prepare(&folder).unwrap();
        assert!(!folder.join(JSON).exists(), "nothing is left of looking");
        fs::write(folder.join(JSON), "earlier").unwrap();
        prepare(&folder).unwrap();
        assert_eq!(fs::read_to_string(folder.join(JSON)).unwrap(), "earlier");
        let below_a_file = folder.join(JSON).join("out");
        let error = prepare(&below_a_file).unwrap_err().to_string();
        fs::remove_dir_all(&folder).unwrap();
        assert!(error.starts_with(&below_a_file.display().to_string()), "{error}");
    }

    #[test]
    fn a_scenario_has_one_table() {
        let mut report = Report::new("compare".into(), Vec::new());
        report.add(table("echo", &[Some(4.0)]));
        report.add(table("churn", &[Some(4.0)]));
        report.add(table("echo", &[Some(5.0), Some(5.0)]));
        let told: Vec<_> =
            report.tables.iter().map(|it| (&*it.scenario, it.rows[0].samples.len())).collect();
        assert_eq!(told, [("echo", 2), ("churn", 1)]);
    }

    #[test]
    fn each_table_tells_its_revision() {
        let of = |revision: &str, scenario| {
            let mut report = Report::new("compare".into(), Vec::new());
            report.environment = vec![(environment::OURS.into(), revision.into())];
            report.add(table(scenario, &[Some(4.0)]));
            report
        };
        let mut report = of("b", "churn");
        let mut earlier = of("a", "echo");
        earlier.add(table("churn", &[Some(4.0)]));
        report.go_on_from(earlier);
        report.add(table("churn", &[Some(5.0)]));
        let told: Vec<_> = report.tables.iter().map(text::conditions).collect();
        let [echo, churn] = &told[..] else { panic!("{told:?}") };
        assert!(echo.ends_with("of duopoll a"), "{echo}");
        assert!(churn.ends_with("of duopoll b"), "{churn}");
    }

    #[test]
    fn one_round_has_no_interval() {
        let one = table("echo", &[Some(4.0)]);
        let text = text::table(&one)
            + &markdown::report(&{
                let mut report = Report::new("compare".into(), Vec::new());
                report.environment.clear();
                report.add(table("echo", &[Some(4.0)]));
                report
            });
        assert!(text.contains("no intervals") && !text.contains("1.00–1.00"), "{text}");
        let three = text::table(&table("echo", &[Some(4.0); 3]));
        assert!(three.contains("intervals of 75 %") && three.contains("1.00–1.00 ="), "{three}");
    }

    #[test]
    fn a_missing_yardstick_gives_no_ratio() {
        let rows = [row("peer", Role::Peer, &[Some(1.0)])];
        assert!(summarise(&rows[0], &rows, "classic", 0).to_yardstick.median.is_nan());
    }
}
