//! The report as Markdown: an overview of ratios, then a table and a plot a scenario.

use std::fmt::Write;

use super::{Report, Table, figure, text};

/// The whole report.
pub fn report(report: &Report) -> String {
    let mut out = String::from("# Comparison\n\n");
    let _ = writeln!(out, "`{}`, {:.1} minutes.\n", report.command, report.seconds / 60.0);
    out.push_str("| | |\n|---|---|\n");
    for (name, value) in &report.environment {
        let _ = writeln!(out, "| {name} | {value} |");
    }
    if !report.notes.is_empty() {
        out.push_str("\nNotes:\n\n");
        for note in &report.notes {
            let _ = writeln!(out, "- {}", note.replace('\n', " "));
        }
    }
    overview(&mut out, report);
    for table in &report.tables {
        section(&mut out, table);
    }
    out
}

/// CPU time a request relative to the yardstick, servers down, scenarios across.
fn overview(out: &mut String, report: &Report) {
    let echo: Vec<&Table> =
        report.tables.iter().filter(|table| !table.scenario.starts_with("resp")).collect();
    let mut servers: Vec<&str> = Vec::new();
    for row in echo.iter().flat_map(|table| &table.rows) {
        if !servers.contains(&row.server.as_str()) {
            servers.push(&row.server);
        }
    }
    if servers.is_empty() {
        return;
    }
    out.push_str("\n## CPU time a request, relative to the yardstick\n\n| scenario |");
    for server in &servers {
        let _ = write!(out, " {server} |");
    }
    let _ = write!(out, "\n|---|{}\n", "---:|".repeat(servers.len()));
    for table in echo {
        let mark = if table.disturbed.is_empty() { "" } else { " (disturbed)" };
        let _ = write!(out, "| {}{mark} |", table.scenario);
        for server in &servers {
            let ratio = table
                .lines()
                .find(|(row, _)| row.server == *server)
                .map_or(f64::NAN, |(_, summary)| summary.to_yardstick.median);
            let _ = write!(out, " {} |", figure(ratio, 2));
        }
        out.push('\n');
    }
}

fn section(out: &mut String, table: &Table) {
    let columns = text::columns(table);
    let _ = writeln!(out, "\n## {}: {}\n", table.scenario, table.title);
    let _ = writeln!(out, "{}.\n", text::conditions(table));
    for column in &columns {
        let _ = write!(out, "| {} ", column.heading.trim());
    }
    let _ = write!(out, "|\n|---|{}\n", "---:|".repeat(columns.len() - 1));
    for (row, summary) in table.lines() {
        for column in &columns {
            let _ = write!(out, "| {} ", (column.cell)(row, summary));
        }
        out.push_str("|\n");
    }
    if let Some(line) = text::beside_slow(table) {
        let _ = writeln!(out, "\n{line}");
    }
    if table.rows.iter().any(|row| row.calls.is_some()) {
        out.push_str("\nSystem calls a request:\n\n");
        for row in &table.rows {
            let Some(calls) = &row.calls else { continue };
            let list: Vec<String> =
                calls.by_name.iter().map(|(name, count)| format!("{name} {count:.2}")).collect();
            let _ = writeln!(out, "- {}: {}", row.server, list.join(", "));
        }
    }
    let _ = writeln!(out, "\n![{0}](svg/{0}.svg)", table.scenario);
}
