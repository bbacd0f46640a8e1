//! How it looks: the server, its memory, its pollers and its connections, from top to bottom.

use std::time::Instant;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, StatefulWidget, Table, TableState, Widget};

use crate::model::{ConnectionRow, Link, Model, PollerRow, Scene};

/// Of the frame that is printed.
const PRINTED_COLUMNS: u16 = 104;
/// Connections of it.
const PRINTED_CONNECTIONS_MAX: usize = 20;
/// Title, server and memory, before and behind the pollers an empty line.
const ROWS_ABOVE: u16 = 5;

/// Shares of the memory budget from which on it is told by colour: above the latter nobody is accepted.
const MEMORY_HIGH: f64 = 0.75;
const MEMORY_FULL: f64 = 0.875;

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const KEYS: &str = "q quits   ↑↓ jk select   s sorts by another   p pauses";

/// What is in the terminal.
pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model, now: Instant) {
    render(frame.area(), frame.buffer_mut(), model, now, KEYS);
}

/// The same as lines of text.
pub(crate) fn print(model: &Model, now: Instant) -> String {
    let scene = model.scene.as_ref();
    let rows = scene.and_then(|scene| scene.connections.as_ref()).map_or(0, Vec::len);
    let rows = rows.min(PRINTED_CONNECTIONS_MAX);
    let pollers = scene.map_or(0, |scene| scene.pollers.len());
    // Each table has its heads, and each connection a line.
    let height = usize::from(ROWS_ABOVE) + 1 + pollers + 2 + rows;
    let height = u16::try_from(height).unwrap_or(u16::MAX);
    let area = Rect::new(0, 0, PRINTED_COLUMNS, height);
    let mut buffer = Buffer::empty(area);
    render(area, &mut buffer, model, now, "");
    text_of(&buffer)
}

fn text_of(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer.area.rows() {
        let line: String = row.columns().map(|cell| buffer[(cell.x, cell.y)].symbol()).collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn render(area: Rect, buffer: &mut Buffer, model: &Model, now: Instant, keys: &str) {
    let nothing = Scene::default();
    let scene = model.scene.as_ref().unwrap_or(&nothing);
    // Of many pollers no more than leave room for connections.
    let pollers = u16::try_from(scene.pollers.len()).unwrap_or(u16::MAX).saturating_add(1);
    let pollers = if keys.is_empty() { pollers } else { pollers.min((area.height / 2).max(2)) };
    let foot = u16::from(!keys.is_empty());
    let rows = [1, 1, 1, 1, pollers, 1].map(Constraint::Length);
    let rows = rows.into_iter().chain([Constraint::Fill(1), Constraint::Length(foot)]);
    let areas = Layout::vertical(rows).split(area);
    title(model, now, keys.is_empty()).render(areas[0], buffer);
    server(scene).render(areas[1], buffer);
    memory(scene, areas[2], buffer);
    pollers_table(&scene.pollers).render_in(areas[4], buffer, None);
    connections(model, scene, areas[6], buffer);
    Paragraph::new(keys).style(DIM).render(areas[7], buffer);
}

fn title(model: &Model, now: Instant, is_printed: bool) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut spans = vec![Span::styled(format!("duopoll top  {}", model.target), bold)];
    let state = match &model.link {
        Link::Begun => Some(("asks for the first time".to_owned(), Color::Yellow)),
        Link::Lost(since, error) => {
            let ago = now.saturating_duration_since(*since);
            Some((format!("gone for {} s, asks again: {error}", ago.as_secs()), Color::Red))
        }
        Link::Up if model.scene.as_ref().is_some_and(|scene| scene.is_new) => {
            Some(("has begun anew".to_owned(), Color::Yellow))
        }
        Link::Up if !is_printed && !model.is_paused => Some(("up".to_owned(), Color::Green)),
        Link::Up => None,
    };
    let paused = model.is_paused.then_some(("paused".to_owned(), Color::Yellow));
    for (text, color) in paused.into_iter().chain(state) {
        spans.push(Span::styled(format!("  {text}"), Style::new().fg(color)));
    }
    Line::from(spans)
}

fn server(scene: &Scene) -> Line<'static> {
    let told = &scene.server;
    // What should not be is seen.
    let alarm = |figure: Option<f64>| match figure {
        Some(figure) if figure > 0.0 => Style::new().fg(Color::Red),
        _ => Style::new(),
    };
    let plain = Style::new();
    let mut figures = vec![
        ("open", count(told.open), plain),
        ("waiting", count(told.waiting), alarm(told.waiting)),
        ("accepts/s", count(told.accepts), plain),
        ("requests/s", count(told.requests), plain),
        ("refused", count(told.refused), alarm(told.refused)),
        ("errors", count(told.errors), plain),
        ("panics", count(told.panics), alarm(told.panics)),
    ];
    if told.failed_pollers > 0.0 {
        let failed = Some(told.failed_pollers);
        figures.push(("failed pollers", count(failed), alarm(failed)));
    }
    let mut spans = vec![Span::raw("server")];
    for (name, value, style) in figures {
        spans.push(Span::raw(format!("  {name} ")));
        spans.push(Span::styled(value, style.add_modifier(Modifier::BOLD)));
    }
    Line::from(spans)
}

fn memory(scene: &Scene, area: Rect, buffer: &mut Buffer) {
    let (held, budget) = (scene.held_bytes, scene.budget_bytes);
    let used = held.zip(budget).map(|(held, budget)| held / budget);
    let share = used.filter(|used| used.is_finite()).unwrap_or(0.0).clamp(0.0, 1.0);
    let color = match share {
        share if share >= MEMORY_FULL => Color::Red,
        share if share >= MEMORY_HIGH => Color::Yellow,
        _ => Color::Green,
    };
    let label = format!("memory  {} of {}  {:3.0} %", bytes(held), bytes(budget), share * 100.0);
    // Filled and empty are other characters, not only other colours: it is printed too.
    let cells = usize::from(area.width).saturating_sub(label.chars().count() + 1);
    let filled = (share * cells as f64).round() as usize;
    Line::from(vec![
        Span::raw(label + " "),
        Span::styled("━".repeat(filled), Style::new().fg(color)),
        Span::styled("─".repeat(cells.saturating_sub(filled)), DIM),
    ])
    .render(area, buffer);
}

/// A table, right-aligned but for some columns.
struct Columns<'a, const N: usize> {
    heads: [&'a str; N],
    widths: [Constraint; N],
    /// So many of the first are left-aligned.
    left: usize,
    rows: Vec<[String; N]>,
}

impl<const N: usize> Columns<'_, N> {
    fn render_in(self, area: Rect, buffer: &mut Buffer, selected: Option<usize>) {
        let aligned = |at: usize, text: String| {
            let side = if at < self.left { Alignment::Left } else { Alignment::Right };
            Line::from(text).alignment(side)
        };
        let row = |cells: [String; N]| {
            Row::new(cells.into_iter().enumerate().map(|(at, text)| aligned(at, text)))
        };
        let heads = row(self.heads.map(str::to_owned));
        let table = Table::new(self.rows.into_iter().map(row), self.widths)
            .header(heads.style(DIM))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected(selected);
        StatefulWidget::render(table, area, buffer, &mut state);
    }
}

fn pollers_table(pollers: &[PollerRow]) -> Columns<'static, 12> {
    let row = |poller: &PollerRow| {
        [
            poller.name.clone(),
            poller.engine.clone(),
            count(poller.connections),
            count(poller.requests),
            bytes(poller.received_bytes),
            bytes(poller.sent_bytes),
            count(poller.syscalls_per_request),
            time(poller.turn_p50),
            time(poller.turn_p99),
            time(poller.poll_p99),
            time(poller.lag_p99),
            count(poller.tasks_per_turn),
        ]
    };
    Columns {
        heads: [
            "poller",
            "engine",
            "open",
            "req/s",
            "in/s",
            "out/s",
            "sys/req",
            "turn p50",
            "turn p99",
            "poll p99",
            "lag p99",
            "tasks/turn",
        ],
        widths: [6, 6, 7, 7, 8, 8, 7, 8, 8, 8, 8, 10].map(Constraint::Length),
        left: 2,
        rows: pollers.iter().map(row).collect(),
    }
}

fn connections(model: &Model, scene: &Scene, area: Rect, buffer: &mut Buffer) {
    let [above, table] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let Some(rows) = &scene.connections else {
        if model.scene.is_some() {
            Paragraph::new("connections  this server does not tell of them").render(above, buffer);
        }
        return;
    };
    let (told, total, order) = (rows.len(), scene.total, model.order.text());
    let of = if (told as u64) < total {
        format!("the {told} of {total} that have moved most")
    } else {
        format!("{total}")
    };
    Paragraph::new(format!("connections  {of}, by {order}")).render(above, buffer);
    let row = |row: &ConnectionRow| {
        let figure = |bytes_told: u64| bytes(Some(bytes_told as f64));
        [
            row.told.id.clone(),
            row.told.peer.clone().unwrap_or_else(|| "-".into()),
            figure(row.told.received_bytes),
            figure(row.told.sent_bytes),
            figure(row.told.unsent_bytes),
            bytes(row.received_bytes),
            bytes(row.sent_bytes),
        ]
    };
    let columns = Columns {
        heads: ["id", "peer", "received", "sent", "unsent", "in/s", "out/s"],
        widths: [
            Constraint::Length(14),
            // Whatever is left: an address of IPv6 has up to 47.
            Constraint::Fill(1),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
        ],
        left: 2,
        rows: rows.iter().map(row).collect(),
    };
    columns.render_in(table, buffer, model.selected());
}

/// In powers of 1024.
fn bytes(figure: Option<f64>) -> String {
    scaled(figure, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], " ")
}

/// In powers of 1000. What is small is told with its fraction.
fn count(figure: Option<f64>) -> String {
    match figure {
        Some(figure) if figure > 0.0 && figure < 10.0 && figure.fract() != 0.0 => {
            format!("{figure:.2}")
        }
        figure => scaled(figure, 1000.0, &["", "k", "M", "G", "T"], ""),
    }
}

fn scaled(figure: Option<f64>, base: f64, units: &[&str], space: &str) -> String {
    let Some(mut figure) = figure.filter(|figure| figure.is_finite()) else { return "-".into() };
    let mut unit = 0;
    // What would be rounded up to the base is of the next unit.
    while figure >= base - 0.5 && unit + 1 < units.len() {
        figure /= base;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && figure < 99.95);
    format!("{figure:.digits$}{space}{}", units[unit]).trim_end().to_owned()
}

/// Of seconds.
fn time(figure: Option<f64>) -> String {
    let Some(seconds) = figure.filter(|figure| *figure >= 0.0 && figure.is_finite()) else {
        return "-".into();
    };
    let units = [("µs", 1e6), ("ms", 1e3), ("s", 1.0)];
    // What would be rounded up to a thousand is of the next unit.
    let fits = |(_, factor): &(&str, f64)| seconds * factor < 999.5;
    let (unit, factor) = units.into_iter().find(fits).unwrap_or(units[2]);
    let digits = usize::from(seconds * factor < 99.95);
    format!("{:.digits$} {unit}", seconds * factor)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::model::Sample;
    use crate::parse;

    fn sample(at: Instant, requests: u64, connections: usize) -> Sample {
        let labels = "poller=\"0\",engine=\"epoll\"";
        let figures = format!(
            "duopoll_requests_total{{{labels}}} {requests}\n\
             duopoll_open_connections{{{labels}}} {connections}\n\
             duopoll_sent_bytes_total{{{labels}}} {}\n\
             duopoll_requests_total{{poller=\"1\",engine=\"uring\"}} 0\n\
             duopoll_memory_held_bytes 805306368\nduopoll_memory_budget_bytes 1073741824\n\
             duopoll_server_open_connections {connections}\nduopoll_server_handler_panics_total 3\n",
            requests * 2048
        );
        let rows: Vec<_> = (1..=connections)
            .map(|id| {
                format!(
                    "{{\"id\": \"{id:#x}\", \"peer\": \"192.0.2.1:{id}\", \"received_bytes\": {}, \
                     \"sent_bytes\": 0, \"unsent_bytes\": 7}}",
                    requests * 1000 / id as u64
                )
            })
            .collect();
        let json = format!("{{\"total\": 900, \"connections\": [{}]}}", rows.join(","));
        let connections = Some(parse::connections(&json).expect("connections"));
        Sample { at, figures: parse::figures(&figures).expect("figures"), connections }
    }

    /// One that has heard of its server twice.
    fn model(start: Instant, connections: usize) -> Model {
        let mut model = Model::new("192.0.2.9:9101");
        for seconds in [0, 1] {
            let at = start + Duration::from_secs(seconds);
            model.take(Ok(sample(at, 1000 * (seconds + 1), connections)), at);
        }
        model
    }

    fn drawn(model: &Model, now: Instant, width: u16, height: u16) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, model, now)).expect("drawn");
        terminal
    }

    #[test]
    fn everything_is_where_it_belongs() {
        let start = Instant::now();
        let mut model = model(start, 3);
        model.select(1);
        model.select(1);
        let line = "━".repeat(53) + &"─".repeat(17);
        let expected = [
            "duopoll top  192.0.2.9:9101  up",
            "server  open 3  waiting -  accepts/s -  requests/s -  refused -  errors -  panics 3",
            &format!("memory  768 MiB of 1.0 GiB   75 % {line}"),
            "",
            "poller engine    open   req/s     in/s    out/s sys/req turn p50 turn p99 poll p99  lag p99 tasks/turn",
            "0      epoll        3    1.0k        -  2.0 MiB       -        -        -        -        -          -",
            "1      uring        -       0        -        -       -        -        -        -        -          -",
            "",
            "connections  the 3 of 900 that have moved most, by bytes",
            "id             peer                                         received     sent   unsent     in/s    out/s",
            "0x1            192.0.2.1:1                                   1.9 MiB      0 B      7 B  977 KiB      0 B",
            "0x2            192.0.2.1:2                                   977 KiB      0 B      7 B  488 KiB      0 B",
            "0x3            192.0.2.1:3                                   651 KiB      0 B      7 B  326 KiB      0 B",
            KEYS,
        ];
        let terminal = drawn(&model, start, 104, 14);
        let buffer = terminal.backend().buffer();
        assert!(buffer[(0, 11)].modifier.contains(Modifier::REVERSED), "it is selected");
        assert_eq!(buffer[(40, 2)].fg, Color::Yellow);
        let shown: Vec<_> = text_of(buffer).lines().map(str::to_owned).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_selected_one_is_in_sight() {
        let start = Instant::now();
        let mut model = model(start, 200);
        model.select(1);
        model.select(150);
        let terminal = drawn(&model, start, 120, 20);
        let shown = terminal.backend().to_string();
        assert!(shown.contains("192.0.2.1:151 ") && !shown.contains("192.0.2.1:1 "), "{shown}");
    }

    #[test]
    fn a_server_that_is_gone_is_told_of() {
        let start = Instant::now();
        let mut model = model(start, 1);
        model.take(Err("Connection refused".into()), start);
        model.pause();
        let shown = drawn(&model, start + Duration::from_secs(7), 120, 14).backend().to_string();
        assert!(shown.contains("paused  gone for 7 s, asks again: Connection refused"), "{shown}");
        assert!(shown.contains("192.0.2.1:1 "), "what was seen last is still there: {shown}");
    }

    #[test]
    fn any_terminal_is_large_enough() {
        let start = Instant::now();
        let all = [Model::new("nobody"), model(start, 0), model(start, 200)];
        for model in all {
            for (width, height) in [(1, 1), (2, 5), (20, 7), (500, 3), (80, 24), (3, 200)] {
                drawn(&model, start, width, height);
            }
        }
    }

    #[test]
    fn figures_are_short() {
        let all: Vec<_> =
            [0.0, 999.0, 1023.96, 1024.0, 1.5e6, 1e300].map(|n| bytes(Some(n))).into();
        assert_eq!(all[..5], ["0 B", "999 B", "1.0 KiB", "1.0 KiB", "1.4 MiB"]);
        let all: Vec<_> =
            [0.0, 0.255, 7.0, 9.99, 12.4, 1000.0, 1.26e6].map(|n| count(Some(n))).into();
        assert_eq!(all, ["0", "0.26", "7", "9.99", "12", "1.0k", "1.3M"]);
        let all: Vec<_> = [0.0, 2.5e-6, 0.0015, 2.0, f64::NAN, -1.0].map(|n| time(Some(n))).into();
        assert_eq!(all, ["0.0 µs", "2.5 µs", "1.5 ms", "2.0 s", "-", "-"]);
        assert_eq!((bytes(None), count(Some(f64::INFINITY))), ("-".into(), "-".into()));
    }
}
