//! The figures of pollers and servers for whatever recorder the program has installed with the crate `metrics`, such as
//! `metrics-exporter-prometheus` or one for OpenTelemetry.
//!
//! ```no_run
//! # use duopoll::{Connection, EventLoop, Listener};
//! # use std::time::Duration;
//! # fn install_recorder() {}
//! install_recorder();
//! let server = EventLoop::builder()
//!     .timings(true)
//!     .on_request(async |connection: &mut Connection| {
//!         let (reader, writer) = connection.split();
//!         writer.append(reader.buffer_mut());
//!         writer.flush().await
//!     })
//!     .serve(Listener::bind("127.0.0.1:8080")?)?;
//! let pollers = server.pollers().clone();
//! let mut metrics = duopoll::metrics::Metrics::new(&pollers).server("echo", &server);
//! loop {
//!     metrics.record();
//!     std::thread::sleep(Duration::from_secs(1));
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Nothing is recorded but by [`Metrics::record`], so connections cost no more than without. In a program whose main thread has other
//! things to do [`Metrics::every`] is a future that does it, for a task.
//!
//! | name | labels | |
//! |---|---|---|
//! | `duopoll_` and a field of [`Stats`] | `poller`, `engine` | a poller's; those of the process and of the budget have no labels |
//! | `duopoll_server_` and a field of [`ServerStats`] | `server` | a server's |
//! | `duopoll_turn_seconds`, `duopoll_poll_seconds`, `duopoll_lag_seconds`, `duopoll_batch` | `poller`, `engine` | histograms: the [`Timings`], if they are [measured](crate::PollerOptions::timings) |
//!
//! Counters have no `_total` behind their names; the exporter for Prometheus adds none either.

use std::fmt;
use std::sync::Weak;
use std::time::Duration;

use ::metrics::{
    KeyName, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::pollers::WeakPollers;
use crate::server::{RunningServer, Server};
use crate::stats::{Figure, Kind};
use crate::time::{MissedTicks, interval};
use crate::timings::{Histogram, Timing, Timings};
use crate::{Pollers, ServerStats, Stats};

/// Samples that a histogram is given at once: where there were more, each stands for several.
const SAMPLES_MAX: u64 = 10_000;

/// Brings figures to the recorder: see the [module](self). It keeps neither pollers nor servers alive.
pub struct Metrics {
    pollers: WeakPollers,
    servers: Vec<(String, Weak<RunningServer>)>,
    /// What of their timings was recorded.
    recorded: Vec<Timings>,
    described: bool,
}

impl Metrics {
    /// Those of all of these pollers.
    pub fn new(pollers: &Pollers) -> Metrics {
        let (servers, recorded) = (Vec::new(), Vec::new());
        Metrics { pollers: pollers.downgrade(), servers, recorded, described: false }
    }

    /// And those of a server, under this name.
    pub fn server(mut self, name: impl Into<String>, server: &Server) -> Metrics {
        self.servers.push((name.into(), server.downgrade()));
        self
    }

    /// Tells the recorder what the figures are now. False if the pollers are gone.
    pub fn record(&mut self) -> bool {
        let Some(pollers) = self.pollers.upgrade() else { return false };
        if !std::mem::replace(&mut self.described, true) {
            describe();
        }
        let engines = pollers.engine_reports();
        let labels = |index: usize| {
            let engine = engines.get(index).map_or("", |report| report.engine);
            vec![Label::new("poller", index.to_string()), Label::new("engine", engine)]
        };
        for (index, stats) in pollers.stats_of_each().into_iter().enumerate() {
            let own = stats.figures().filter(|figure| !figure.is_shared);
            own.for_each(|figure| tell("duopoll_", &figure, labels(index)));
        }
        let all = pollers.stats().figures();
        let of_the_process = all.filter(|figure| figure.is_shared);
        of_the_process.for_each(|figure| tell("duopoll_", &figure, Vec::new()));
        let timings = pollers.timings_of_each();
        for (index, now) in timings.iter().enumerate() {
            let before = self.recorded.get(index).map(Timings::each);
            for (place, measured) in now.each().into_iter().enumerate() {
                let before = before.map(|before| before[place].values);
                let new = measured.values.since(before);
                tell_histogram(histogram_name(&measured), &new, measured.scale, labels(index));
            }
        }
        self.recorded = timings;
        for (name, server) in &self.servers {
            let Some(server) = server.upgrade() else { continue };
            for figure in server.server_stats().figures() {
                tell("duopoll_server_", &figure, vec![Label::new("server", name.clone())]);
            }
        }
        true
    }

    /// [Records](Metrics::record) them that often, until the pollers are gone or it is dropped. For a task of any executor; a timer is
    /// duopoll's.
    pub async fn every(mut self, period: Duration) {
        let mut ticks = interval(period).missed_ticks(MissedTicks::Delay);
        while self.record() {
            ticks.tick().await;
        }
    }
}

fn tell(prefix: &'static str, figure: &Figure, labels: Vec<Label>) {
    let name = format!("{prefix}{}", figure.name);
    match figure.kind {
        Kind::Counter => counter!(name, labels).absolute(figure.value),
        Kind::Gauge => gauge!(name, labels).set(figure.value as f64),
    }
}

fn histogram_name(measured: &Timing<'_>) -> String {
    format!("duopoll_{}", measured.name)
}

fn tell_histogram(name: String, values: &Histogram, scale: f64, labels: Vec<Label>) {
    let histogram = histogram!(name, labels);
    let each = values.count().div_ceil(SAMPLES_MAX).max(1);
    for (bound, count) in values.buckets() {
        // What is rare is not lost.
        let samples = usize::try_from(count.div_ceil(each)).unwrap_or(usize::MAX);
        histogram.record_many(bound as f64 * scale, samples);
    }
}

fn describe() {
    let pollers = Stats::default().figures().map(|figure| ("duopoll_", figure));
    let servers = ServerStats::default().figures().map(|figure| ("duopoll_server_", figure));
    for (prefix, figure) in pollers.chain(servers) {
        let name = KeyName::from(format!("{prefix}{}", figure.name));
        match figure.kind {
            Kind::Counter => describe_counter!(name, figure.help),
            Kind::Gauge => describe_gauge!(name, figure.help),
        }
    }
    for measured in Timings::default().each() {
        let name = KeyName::from(histogram_name(&measured));
        match measured.name.ends_with("_seconds") {
            true => describe_histogram!(name, Unit::Seconds, measured.help),
            false => describe_histogram!(name, measured.help),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("servers", &self.servers.len()).finish_non_exhaustive()
    }
}
