//! A plot a scenario: bars of CPU time a request and of the 99th percentile of latency.

use std::fmt::Write;

use super::{Summary, Table, figure, micros};
use crate::servers::Role;

const ROW: f64 = 24.0;
const TOP: f64 = 64.0;
const NAMES: f64 = 130.0;
const BARS: f64 = 300.0;
/// Room right of the bars for their figures.
const FIGURES: f64 = 120.0;
const WIDTH: f64 = NAMES + 2.0 * (BARS + FIGURES) + 20.0;

/// The plot of a table, best server first.
pub fn plot(table: &Table) -> String {
    let mut lines: Vec<_> = table.lines().filter(|(_, s)| s.cpu_us.is_finite()).collect();
    lines.sort_by(|a, b| a.1.cpu_us.total_cmp(&b.1.cpu_us));
    let height = TOP + ROW * lines.len() as f64 + 16.0;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
    );
    label(&mut out, 10.0, 22.0, "start", "15", &format!("{}: {}", table.scenario, table.title));
    let cpu_left = NAMES;
    let p99_left = NAMES + BARS + FIGURES;
    label(&mut out, cpu_left, 50.0, "start", "12", "CPU µs a request: median, tick at the minimum");
    label(&mut out, p99_left, 50.0, "start", "12", "99th percentile of latency in µs");

    let longest = |of: fn(&Summary) -> f64| lines.iter().map(|(_, s)| of(s)).fold(0.0, f64::max);
    let cpu_scale = BARS / longest(|s| s.cpu_us).max(f64::MIN_POSITIVE);
    let p99_scale = BARS / longest(|s| s.p99_us).max(f64::MIN_POSITIVE);
    for (i, (row, summary)) in lines.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let fill = match row.role {
            Role::Ours => "#0a8f5b",
            Role::Yardstick => "#555555",
            Role::Floor => "#3b76c4",
            Role::Peer => "#d9a441",
        };
        label(&mut out, NAMES - 8.0, y + 14.0, "end", "12", &row.server);
        bar(&mut out, cpu_left, y, summary.cpu_us * cpu_scale, fill);
        let tick = cpu_left + summary.cpu_us_min * cpu_scale;
        let _ = writeln!(
            out,
            "<path d=\"M{tick:.1} {:.1}v{:.1}\" stroke=\"#ffffff\" stroke-width=\"2\"/>",
            y + 2.0,
            ROW - 8.0
        );
        let ratio = if summary.to_yardstick.is_finite() {
            format!("{} (× {})", micros(summary.cpu_us), figure(summary.to_yardstick, 2))
        } else {
            micros(summary.cpu_us)
        };
        let end = cpu_left + summary.cpu_us * cpu_scale + 6.0;
        label(&mut out, end, y + 14.0, "start", "12", &ratio);
        if summary.p99_us.is_finite() {
            bar(&mut out, p99_left, y, summary.p99_us * p99_scale, fill);
            let end = p99_left + summary.p99_us * p99_scale + 6.0;
            label(&mut out, end, y + 14.0, "start", "12", &micros(summary.p99_us));
        }
    }
    out.push_str("</svg>\n");
    out
}

fn bar(out: &mut String, x: f64, y: f64, width: f64, fill: &str) {
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>",
        ROW - 4.0
    );
}

fn label(out: &mut String, x: f64, y: f64, anchor: &str, size: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" \
         fill=\"#222222\">{text}</text>"
    );
}
