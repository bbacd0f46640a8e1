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
    // By what is printed beside the bars.
    let order = |s: &Summary| (s.to_yardstick.median, s.cpu_us);
    lines.sort_by(|a, b| {
        let (a, b) = (order(a.1), order(b.1));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
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
    label(
        &mut out,
        cpu_left,
        50.0,
        "start",
        "12",
        "CPU µs a request: median, ratio and its interval",
    );
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
        let ratio = summary.to_yardstick;
        let (mut end, mut text) = (summary.cpu_us, micros(summary.cpu_us));
        if ratio.median.is_finite() {
            text = format!("{text} (× {})", figure(ratio.median, 2));
            // The interval of the ratio, on the scale of the bar.
            let at = |value: f64| summary.cpu_us * value / ratio.median;
            whisker(&mut out, cpu_left, y, at(ratio.low) * cpu_scale, at(ratio.high) * cpu_scale);
            end = end.max(at(ratio.high));
        }
        let end = cpu_left + end * cpu_scale + 6.0;
        label(&mut out, end, y + 14.0, "start", "12", &text);
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

/// A line from one end of an interval to the other, in the middle of a bar.
fn whisker(out: &mut String, x: f64, y: f64, low: f64, high: f64) {
    let (low, high, middle) = (x + low, x + high, y + (ROW - 4.0) / 2.0);
    let _ = writeln!(
        out,
        "<path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {0:.1}v8M{high:.1} {0:.1}v8\" \
         stroke=\"#111111\" stroke-width=\"1.5\"/>",
        middle - 4.0
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
