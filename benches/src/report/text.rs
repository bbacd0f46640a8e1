//! The table on the terminal, and the columns that it shares with the Markdown one.

use std::fmt::Write;

use super::{Row, Summary, Table, figure, micros};
use crate::stats::{Estimate, confidence};

/// A column: its heading, and what a row has in it.
pub(super) struct Column {
    pub(super) heading: &'static str,
    pub(super) cell: fn(&Row, &Summary) -> String,
}

/// The columns that a table has figures for.
pub(super) fn columns(table: &Table) -> Vec<Column> {
    let mut columns = vec![
        Column { heading: "server", cell: |row, _| row.server.clone() },
        Column { heading: "CPU µs/req", cell: |_, s| micros(s.cpu_us) },
        Column { heading: "min", cell: |_, s| micros(s.cpu_us_min) },
    ];
    let mut add = |wanted: bool, heading, cell| {
        if wanted {
            columns.push(Column { heading, cell });
        }
    };
    let known = |ratio: fn(&Summary) -> Estimate| table.has(|s| ratio(s).median);
    add(known(|s| s.to_yardstick), "× yardstick", |_, s| figure(s.to_yardstick.median, 3));
    add(known(|s| s.to_yardstick), "within", |_, s| interval(s.to_yardstick));
    add(known(|s| s.to_floor), "× floor", |_, s| figure(s.to_floor.median, 3));
    add(known(|s| s.to_floor), "within ", |_, s| interval(s.to_floor));
    add(known(|s| s.to_older), "× older", |_, s| figure(s.to_older.median, 3));
    add(known(|s| s.to_older), " within", |_, s| interval(s.to_older));
    add(true, "req/s", |_, s| figure(s.rate, 0));
    add(table.has(|s| s.p50_us), "p50 µs", |_, s| micros(s.p50_us));
    add(table.has(|s| s.p99_us), "p99 µs", |_, s| micros(s.p99_us));
    add(table.has(|s| s.p999_us), "p99.9 µs", |_, s| micros(s.p999_us));
    add(table.has(|s| s.lost), "lost", |_, s| figure(s.lost, 0));
    add(table.has(|s| s.p50_to_alone), "p50 × alone", |_, s| figure(s.p50_to_alone, 3));
    add(table.has(|s| s.p99_to_alone), "p99 × alone", |_, s| figure(s.p99_to_alone, 3));
    let calls = table.rows.iter().any(|row| row.calls.is_some());
    add(calls, "calls/req", |row, _| {
        row.calls.as_ref().map_or("–".into(), |calls| figure(calls.per_request, 2))
    });
    let instructions = table.rows.iter().any(|row| row.instructions.is_some());
    add(instructions, "instr/req", |row, _| figure(row.instructions.unwrap_or(f64::NAN), 0));
    add(true, "busy %", |_, s| figure(s.server_load * 100.0, 0));
    add(table.has(|s| s.other_load), "other %", |_, s| figure(s.other_load * 100.0, 0));
    add(true, "RSS MiB", |_, s| figure(s.rss_kib / 1024.0, 1));
    add(table.has(|s| s.rss_settled_kib), "closed MiB", |_, s| {
        figure(s.rss_settled_kib / 1024.0, 1)
    });
    add(table.has(|s| s.rss_settled_kib), "start MiB", |_, s| figure(s.rss_start_kib / 1024.0, 1));
    add(table.has(|s| s.rss_idle_kib_each), "KiB/idle", |_, s| figure(s.rss_idle_kib_each, 2));
    columns
}

/// Where a ratio lies, and a sign where that may be 1: which of the two costs less cannot be told.
fn interval(ratio: Estimate) -> String {
    if !ratio.low.is_finite() {
        return figure(f64::NAN, 0);
    }
    let sign = if ratio.may_be_one() { " =" } else { "" };
    format!("{:.2}–{:.2}{sign}", ratio.low, ratio.high)
}

/// One line on how the table was made.
pub(super) fn conditions(table: &Table) -> String {
    let rounds = table.rows.iter().map(|row| row.samples.len()).max().unwrap_or(0);
    let disturbed: Vec<String> = table.disturbed.iter().map(usize::to_string).collect();
    format!(
        "{rounds} round{} of {:.2} s after {:.2} s; yardstick: {}; {}{}{}",
        if rounds == 1 { "" } else { "s" },
        table.measure_ms as f64 / 1e3,
        table.warm_ms as f64 / 1e3,
        table.yardstick,
        match rounds {
            0 | 1 => "no intervals".to_owned(),
            _ => format!("intervals of {:.0} %", confidence(rounds) * 100.0),
        },
        if disturbed.is_empty() {
            String::new()
        } else {
            format!("; DISTURBED: round {}", disturbed.join(", "))
        },
        if table.revision.is_empty() {
            String::new()
        } else {
            format!("; of duopoll {}", table.revision)
        }
    )
}

/// One line on what slow senders did to the latency of the others, if there were any.
pub(super) fn beside_slow(table: &Table) -> Option<String> {
    let of = |(row, summary): (&Row, &Summary)| {
        let (p50, p99) = (figure(summary.p50_to_alone, 2), figure(summary.p99_to_alone, 2));
        format!("{} × {p50} and × {p99}", row.server)
    };
    let servers: Vec<String> =
        table.lines().filter(|(_, summary)| summary.p50_to_alone.is_finite()).map(of).collect();
    let list = servers.join(", ");
    (!list.is_empty()).then(|| {
        format!("Median and p99 beside the slow senders, relative to those alone: {list}.")
    })
}

/// The table of a scenario in fixed-width characters.
pub fn table(table: &Table) -> String {
    let columns = columns(table);
    let mut lines =
        vec![columns.iter().map(|column| column.heading.to_owned()).collect::<Vec<_>>()];
    for (row, summary) in table.lines() {
        lines.push(columns.iter().map(|column| (column.cell)(row, summary)).collect());
    }
    let widths: Vec<usize> = (0..columns.len())
        .map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = format!("\n{}: {} ({})\n", table.scenario, table.title, conditions(table));
    for line in &lines {
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Names to the left, figures to the right.
            let _ = if i == 0 {
                write!(text, "  {cell:<width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    }
    if let Some(line) = beside_slow(table) {
        text += &format!("  {line}\n");
    }
    text
}
