//! What is shown: the figures of two samples as rates, and what the user has chosen to see of them.
//!
//! Rates and times are those between the two last samples. Of a server that has begun anew in between, as counters tell that have
//! gone back, there are none until the next.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

use crate::parse::{Connection, Connections, Figures, Histogram, Poller};

/// Counters of pollers that grow wherever something happens at all.
const ALWAYS_GROW: [&str; 5] = ["syscalls", "waits", "connections", "received_bytes", "task_polls"];

/// What was answered at some time.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) figures: Figures,
    /// None if the server does not tell of them.
    pub(crate) connections: Option<Connections>,
}

/// A poller. What is not known, or was not there to be measured, is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PollerRow {
    pub(crate) name: String,
    pub(crate) engine: String,
    pub(crate) connections: Option<f64>,
    pub(crate) requests: Option<f64>,
    pub(crate) received_bytes: Option<f64>,
    pub(crate) sent_bytes: Option<f64>,
    pub(crate) syscalls_per_request: Option<f64>,
    /// In seconds, as the next three.
    pub(crate) turn_p50: Option<f64>,
    pub(crate) turn_p99: Option<f64>,
    pub(crate) poll_p99: Option<f64>,
    pub(crate) lag_p99: Option<f64>,
    pub(crate) tasks_per_turn: Option<f64>,
}

/// The server.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServerRow {
    pub(crate) open: Option<f64>,
    pub(crate) waiting: Option<f64>,
    pub(crate) accepts: Option<f64>,
    pub(crate) requests: Option<f64>,
    /// Since it began, as the next three.
    pub(crate) refused: Option<f64>,
    pub(crate) errors: Option<f64>,
    pub(crate) panics: Option<f64>,
    pub(crate) failed_pollers: f64,
}

/// A connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConnectionRow {
    pub(crate) told: Connection,
    pub(crate) received_bytes: Option<f64>,
    pub(crate) sent_bytes: Option<f64>,
}

/// What there is to see.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scene {
    pub(crate) pollers: Vec<PollerRow>,
    pub(crate) server: ServerRow,
    pub(crate) held_bytes: Option<f64>,
    pub(crate) budget_bytes: Option<f64>,
    /// None if the server does not tell of them.
    pub(crate) connections: Option<Vec<ConnectionRow>>,
    /// How many there are, also of those that are not told.
    pub(crate) total: u64,
    /// The server has begun anew since the last sample.
    pub(crate) is_new: bool,
}

impl Scene {
    pub(crate) fn between(before: Option<&Sample>, now: &Sample) -> Scene {
        let is_new = before.is_some_and(|before| has_begun_anew(&before.figures, &now.figures));
        let before = before.filter(|before| !is_new && before.at < now.at);
        let seconds = before.map_or(1.0, |before| (now.at - before.at).as_secs_f64());
        let Figures { pollers, server, process } = &now.figures;
        let rows = pollers.iter().map(|(name, poller)| {
            let before = before.and_then(|before| before.figures.pollers.get(name));
            poller_row(name.to_string(), before, poller, seconds)
        });
        let figure = |name: &str| server.get(name).copied();
        let server_before = before.map(|before| &before.figures.server);
        let rate = |name: &str| Some(grown(server_before?, server, name)? / seconds);
        let failed = pollers.values().filter_map(|poller| poller.figures.get("failed_pollers"));
        let server_row = ServerRow {
            open: figure("open_connections"),
            waiting: figure("waiting_connections"),
            accepts: rate("accepts"),
            requests: rate("requests"),
            refused: figure("refused"),
            errors: figure("handler_errors"),
            panics: figure("handler_panics"),
            failed_pollers: failed.sum(),
        };
        let connections_before = before.and_then(|before| before.connections.as_ref());
        Scene {
            pollers: rows.collect(),
            server: server_row,
            held_bytes: process.get("memory_held_bytes").copied(),
            budget_bytes: process.get("memory_budget_bytes").copied(),
            connections: now
                .connections
                .as_ref()
                .map(|now| connection_rows(connections_before, now, seconds)),
            total: now.connections.as_ref().map_or(0, |now| now.total),
            is_new,
        }
    }
}

fn has_begun_anew(before: &Figures, now: &Figures) -> bool {
    now.pollers.iter().any(|(name, now)| {
        let went_back = |before: &Poller| {
            let figure = |poller: &Poller, name| poller.figures.get(name).copied().unwrap_or(0.0);
            ALWAYS_GROW.iter().any(|name| figure(now, *name) < figure(before, *name))
        };
        before.pollers.get(name).is_some_and(went_back)
    })
}

/// By how much a counter has grown; none if it is not told, or has gone back.
fn grown(before: &HashMap<String, f64>, now: &HashMap<String, f64>, name: &str) -> Option<f64> {
    let grown = now.get(name)? - before.get(name)?;
    (grown >= 0.0).then_some(grown)
}

fn poller_row(name: String, before: Option<&Poller>, now: &Poller, seconds: f64) -> PollerRow {
    let growth = |name: &str| grown(&before?.figures, &now.figures, name);
    let rate = |name: &str| Some(growth(name)? / seconds);
    let time = |name: &str, share: f64| {
        let before = before?.histograms.get(name);
        quantile(before, now.histograms.get(name)?, share)
    };
    let per = |of: Option<f64>, each: Option<f64>| {
        let each = each.filter(|each| *each > 0.0)?;
        Some(of? / each)
    };
    let batches = now.histograms.get("batch");
    let batches_before = before.and_then(|before| before.histograms.get("batch"));
    let tasks = batches_before
        .zip(batches)
        .and_then(|(before, now)| per(Some(now.sum - before.sum), Some(now.count - before.count)));
    PollerRow {
        name,
        engine: now.engine.clone(),
        connections: now.figures.get("open_connections").copied(),
        requests: rate("requests"),
        received_bytes: rate("received_bytes"),
        sent_bytes: rate("sent_bytes"),
        syscalls_per_request: per(growth("syscalls"), growth("requests")),
        turn_p50: time("turn_seconds", 0.5),
        turn_p99: time("turn_seconds", 0.99),
        poll_p99: time("poll_seconds", 0.99),
        lag_p99: time("lag_seconds", 0.99),
        tasks_per_turn: tasks,
    }
}

/// What this share of the values since `before` does not exceed, as even as they may lie in their buckets. None if there are none.
/// A server that tells no buckets tells this itself, of all its time.
fn quantile(before: Option<&Histogram>, now: &Histogram, share: f64) -> Option<f64> {
    let Some((_, _)) = now.buckets.last() else {
        let told = now.quantiles.iter().find(|(told, _)| *told == share)?.1;
        return told.is_finite().then_some(told);
    };
    let earlier = |bound: f64| {
        let buckets = before.map_or(&[][..], |before| &before.buckets);
        let found = buckets.binary_search_by(|(other, _)| other.total_cmp(&bound));
        found.map_or(0.0, |index| buckets[index].1)
    };
    let counts = now.buckets.iter().map(|(bound, count)| (*bound, count - earlier(*bound)));
    let all = counts.clone().next_back().map_or(0.0, |(_, count)| count);
    if all.is_nan() || all <= 0.0 {
        return None;
    }
    let wanted = all * share;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= wanted {
            // Of those beyond all bounds this is known.
            let within = if count > below { (wanted - below) / (count - below) } else { 1.0 };
            return Some(if bound.is_finite() { low + (bound - low) * within } else { low });
        }
        (low, below) = (bound, count);
    }
    None
}

fn connection_rows(
    before: Option<&Connections>,
    now: &Connections,
    seconds: f64,
) -> Vec<ConnectionRow> {
    let before: HashMap<&str, &Connection> = before
        .iter()
        .flat_map(|before| &before.connections)
        .map(|connection| (&*connection.id, connection))
        .collect();
    let rows = now.connections.iter().map(|told| {
        let before = before.get(&*told.id);
        let rate = |bytes: fn(&Connection) -> u64| {
            Some(bytes(told).checked_sub(bytes(before?))? as f64 / seconds)
        };
        ConnectionRow {
            told: told.clone(),
            received_bytes: rate(|connection| connection.received_bytes),
            sent_bytes: rate(|connection| connection.sent_bytes),
        }
    });
    rows.collect()
}

/// What connections are sorted by, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// All that they have moved.
    #[default]
    Bytes,
    /// What they move in a second.
    Rate,
    /// What waits to be sent.
    Unsent,
}

impl Order {
    fn next(self) -> Order {
        match self {
            Order::Bytes => Order::Rate,
            Order::Rate => Order::Unsent,
            Order::Unsent => Order::Bytes,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Order::Bytes => "bytes",
            Order::Rate => "rate",
            Order::Unsent => "unsent bytes",
        }
    }

    fn sort(self, rows: &mut [ConnectionRow]) {
        let moved = |told: &Connection| told.received_bytes.saturating_add(told.sent_bytes);
        match self {
            Order::Bytes => rows.sort_by_key(|row| Reverse(moved(&row.told))),
            Order::Unsent => rows.sort_by_key(|row| Reverse(row.told.unsent_bytes)),
            Order::Rate => {
                let rate = |row: &ConnectionRow| {
                    row.received_bytes.unwrap_or(0.0) + row.sent_bytes.unwrap_or(0.0)
                };
                rows.sort_by(|one, other| rate(other).total_cmp(&rate(one)));
            }
        }
    }
}

/// How it goes with the server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Link {
    /// It was not heard of yet.
    Begun,
    Up,
    /// Since when, and why.
    Lost(Instant, String),
}

/// All that is shown, and how.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) target: String,
    pub(crate) link: Link,
    pub(crate) scene: Option<Scene>,
    pub(crate) order: Order,
    pub(crate) is_paused: bool,
    /// The id of a connection.
    selected: Option<String>,
    last: Option<Sample>,
}

impl Model {
    pub(crate) fn new(target: &str) -> Model {
        Model {
            target: target.to_owned(),
            link: Link::Begun,
            scene: None,
            order: Order::default(),
            is_paused: false,
            selected: None,
            last: None,
        }
    }

    /// Takes what was answered, or why there was no answer; whatever was seen last stays. Nothing changes while it is paused.
    pub(crate) fn take(&mut self, told: Result<Sample, String>, now: Instant) {
        if self.is_paused {
            return;
        }
        match told {
            Ok(sample) => {
                self.link = Link::Up;
                self.scene = Some(Scene::between(self.last.as_ref(), &sample));
                self.last = Some(sample);
                self.sort();
            }
            Err(error) => {
                let since = match self.link {
                    Link::Lost(since, _) => since,
                    _ => now,
                };
                self.link = Link::Lost(since, error);
            }
        }
    }

    pub(crate) fn pause(&mut self) {
        self.is_paused = !self.is_paused;
    }

    pub(crate) fn change_order(&mut self) {
        self.order = self.order.next();
        self.sort();
    }

    fn sort(&mut self) {
        let order = self.order;
        if let Some(rows) = self.scene.as_mut().and_then(|scene| scene.connections.as_mut()) {
            order.sort(rows);
        }
    }

    fn rows(&self) -> &[ConnectionRow] {
        self.scene.as_ref().and_then(|scene| scene.connections.as_deref()).unwrap_or_default()
    }

    /// Where the connection is that was selected, if it still is.
    pub(crate) fn selected(&self) -> Option<usize> {
        let id = self.selected.as_ref()?;
        self.rows().iter().position(|row| row.told.id == *id)
    }

    /// Selects the one that is so many further down, or up.
    pub(crate) fn select(&mut self, by: isize) {
        let last = self.rows().len().checked_sub(1);
        let next = match self.selected() {
            Some(at) => at.saturating_add_signed(by),
            None => 0,
        };
        let next = last.map(|last| self.rows()[next.min(last)].told.id.clone());
        self.selected = next;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::parse;

    fn sample(at: Instant, figures: &str, connections: &[(u64, u64, u64)]) -> Sample {
        let told = connections.iter().map(|(id, received_bytes, unsent_bytes)| Connection {
            id: format!("{id:#x}"),
            peer: None,
            received_bytes: *received_bytes,
            sent_bytes: 0,
            unsent_bytes: *unsent_bytes,
        });
        let connections = Connections { total: 9, connections: told.collect() };
        let figures = parse::figures(figures).expect("figures");
        Sample { at, figures, connections: Some(connections) }
    }

    fn poller(requests: u64, syscalls: u64, turns: [u64; 3]) -> String {
        let [one, two, three] = turns;
        format!(
            "duopoll_requests_total{{poller=\"0\"}} {requests}\n\
             duopoll_syscalls_total{{poller=\"0\"}} {syscalls}\n\
             duopoll_turn_seconds_bucket{{poller=\"0\",le=\"0.001\"}} {one}\n\
             duopoll_turn_seconds_bucket{{poller=\"0\",le=\"0.002\"}} {two}\n\
             duopoll_turn_seconds_bucket{{poller=\"0\",le=\"+Inf\"}} {three}\n\
             duopoll_batch_sum{{poller=\"0\"}} {requests}\n\
             duopoll_batch_count{{poller=\"0\"}} {syscalls}\n\
             duopoll_server_accepts_total {requests}\n"
        )
    }

    #[test]
    fn rates_are_between_two_samples() {
        let start = Instant::now();
        let before = sample(start, &poller(100, 50, [1000, 1000, 1000]), &[(1, 10, 0), (3, 5, 0)]);
        let later = start + Duration::from_secs(2);
        let now = sample(later, &poller(300, 150, [1050, 1100, 1100]), &[(1, 30, 0), (2, 5, 0)]);
        let scene = Scene::between(Some(&before), &now);
        let row = &scene.pollers[0];
        assert_eq!((row.requests, row.syscalls_per_request), (Some(100.0), Some(0.5)));
        assert_eq!((row.turn_p50, row.tasks_per_turn), (Some(0.001), Some(2.0)));
        let p99 = row.turn_p99.expect("some turns");
        assert!((p99 - 0.001_98).abs() < 1e-9, "{p99}");
        assert_eq!((row.poll_p99, row.received_bytes), (None, None));
        assert_eq!((scene.server.accepts, scene.server.open), (Some(100.0), None));
        let rows = scene.connections.expect("some");
        assert_eq!((rows[0].received_bytes, rows[1].received_bytes), (Some(10.0), None));
        assert_eq!((scene.total, scene.is_new), (9, false));

        // Of one alone there are none, and nor are there of no time.
        let first = Scene::between(None, &now);
        assert_eq!((first.pollers[0].requests, first.pollers[0].turn_p99), (None, None));
        assert_eq!(Scene::between(Some(&now), &now).pollers[0].requests, None);
    }

    #[test]
    fn nothing_that_happened_is_no_quantile_and_no_ratio() {
        let start = Instant::now();
        let figures = poller(100, 50, [10, 10, 10]);
        let [before, now] = [0, 1].map(|at| sample(start + Duration::from_secs(at), &figures, &[]));
        let row = Scene::between(Some(&before), &now).pollers.remove(0);
        assert_eq!((row.requests, row.syscalls_per_request), (Some(0.0), None));
        assert_eq!((row.turn_p50, row.tasks_per_turn), (None, None));
    }

    #[test]
    fn a_server_that_begins_anew_has_no_rates_at_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut model = Model::new("here");
        model.take(Ok(sample(at(0), &poller(500, 900, [9, 9, 9]), &[(1, 100, 0)])), at(0));
        model.take(Err("refused".into()), at(1));
        model.take(Err("reset".into()), at(2));
        assert_eq!(model.link, Link::Lost(at(1), "reset".into()));
        assert!(model.scene.is_some(), "what was seen last stays");
        model.take(Ok(sample(at(3), &poller(7, 9, [1, 1, 1]), &[(1, 200, 0)])), at(3));
        let scene = model.scene.as_ref().expect("a scene");
        assert_eq!((scene.is_new, &model.link), (true, &Link::Up));
        assert_eq!((scene.pollers[0].requests, scene.server.accepts), (None, None));
        assert_eq!(scene.connections.as_ref().expect("some")[0].received_bytes, None);
        model.take(Ok(sample(at(4), &poller(17, 19, [1, 1, 1]), &[])), at(4));
        let scene = model.scene.expect("a scene");
        assert_eq!((scene.is_new, scene.pollers[0].requests), (false, Some(10.0)));
    }

    #[test]
    fn figures_that_are_no_numbers_do_no_harm() {
        let start = Instant::now();
        let before = poller(1, 1, [1, 1, 1]);
        for odd in ["NaN", "+Inf", "-Inf", "1e308"] {
            let mut text = String::new();
            for line in before.lines() {
                text += &format!("{} {odd}\n", line.rsplit_once(' ').expect("two").0);
            }
            let samples =
                [sample(start, &before, &[]), sample(start + Duration::from_secs(1), &text, &[])];
            let [first, second] = &samples;
            for (before, now) in [(first, second), (second, first), (second, second)] {
                let _ = Scene::between(Some(before), now);
            }
        }
    }

    #[test]
    fn beyond_all_bounds_the_last_bound_is_told() {
        let histogram = |buckets: &[(f64, f64)]| Histogram {
            buckets: buckets.to_vec(),
            ..Histogram::default()
        };
        let now = histogram(&[(1.0, 0.0), (f64::INFINITY, 5.0)]);
        assert_eq!(quantile(None, &now, 0.5), Some(1.0));
        assert_eq!(quantile(Some(&now), &now, 0.5), None);
        let told =
            Histogram { quantiles: vec![(0.5, 2.0), (0.99, f64::NAN)], ..Histogram::default() };
        assert_eq!((quantile(None, &told, 0.5), quantile(None, &told, 0.99)), (Some(2.0), None));
    }

    #[test]
    fn what_is_selected_stays_so_wherever_it_goes() {
        let start = Instant::now();
        let figures = poller(1, 1, [1, 1, 1]);
        let mut model = Model::new("here");
        model.select(1);
        assert_eq!(model.selected(), None);
        model.take(Ok(sample(start, &figures, &[(1, 30, 0), (2, 20, 7), (3, 10, 8)])), start);
        model.select(1);
        assert_eq!(model.selected(), Some(0));
        model.select(1);
        assert_eq!(model.selected(), Some(1));
        let later = start + Duration::from_secs(1);
        model.take(Ok(sample(later, &figures, &[(1, 30, 0), (2, 35, 7), (3, 30, 8)])), later);
        assert_eq!((model.order, model.selected()), (Order::Bytes, Some(0)));
        model.change_order();
        assert_eq!((model.order, model.selected()), (Order::Rate, Some(1)));
        model.change_order();
        assert_eq!((model.order, model.selected()), (Order::Unsent, Some(1)));
        model.select(100);
        assert_eq!(model.selected(), Some(2));
        model.select(-100);
        assert_eq!(model.selected(), Some(0));
        model.pause();
        model.take(Ok(sample(later, &figures, &[])), later);
        assert_eq!(model.selected(), Some(0), "nothing changes while it is paused");
        model.pause();
        model.take(Ok(sample(later, &figures, &[])), later);
        assert_eq!(model.selected(), None);
    }
}
