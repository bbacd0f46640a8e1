//! A view of a running server: its pollers, its memory and its busiest connections, every second. `top --help` says how.
//!
//! [`fetch`] asks for the figures on a thread of its own, [`parse`] reads them, [`model`] makes rates of two samples, and [`view`]
//! shows them. The terminal belongs to the main thread, so a server that hangs holds up no key.

mod fetch;
mod model;
mod parse;
#[path = "../../common/values.rs"]
mod values;
mod view;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::model::{Model, Sample};

/// How long a signal or an answer may wait for the terminal.
const TICK: Duration = Duration::from_millis(50);
/// It is not for keeping a server busy.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

const HELP: &str = "A view of a server that runs on duopoll, by the figures that it tells.

  top 127.0.0.1:9101         of an example that was started with --metrics 127.0.0.1:9101, or of the proxy with --admin

The address is HOST:PORT, unix:PATH or unix:@NAME. Rates and times are those of the last interval.

  --interval SECONDS         how often it asks (default: 1), perhaps with a fraction
  --once                     ask twice, an interval apart, print what there is to see, and exit
  --help                     print this

Keys: q quits, arrows or j and k select a connection, s sorts by bytes, by rate, or by bytes that wait to be sent, p pauses.
Exit code 0, 1 if the system refuses something or, with --once, if there is no answer, 2 for a bad flag.
";

struct Flags {
    target: String,
    interval: Duration,
    once: bool,
}

fn main() -> ExitCode {
    let flags = match parse_flags() {
        Ok(Some(flags)) => flags,
        Ok(None) => return say(HELP),
        Err(error) => return complain(2, &error),
    };
    if flags.once {
        return match once(&flags) {
            Ok(text) => say(&text),
            Err(error) => complain(1, &error),
        };
    }
    match watch(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(1, &error),
    }
}

/// The flags, or none if help was asked for.
fn parse_flags() -> Result<Option<Flags>, lexopt::Error> {
    let (mut target, mut interval, mut once) = (None, Duration::from_secs(1), false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("help") | Short('h') => return Ok(None),
            Long("once") => once = true,
            Long("interval") => {
                interval = values::seconds("interval", &mut parser)?;
                if interval < INTERVAL_MIN {
                    return Err("--interval must be at least 0.1".into());
                }
            }
            Value(address) if target.is_none() => target = Some(address.string()?),
            _ => return Err(arg.unexpected()),
        }
    }
    let target = target.ok_or("whose figures? An address is missing, such as 127.0.0.1:9101")?;
    Ok(Some(Flags { target, interval, once }))
}

/// What there is to see now.
fn once(flags: &Flags) -> Result<String, String> {
    let mut model = Model::new(&flags.target);
    for sample in fetch::twice(&flags.target, flags.interval)? {
        model.take(Ok(sample), Instant::now());
    }
    Ok(view::print(&model, Instant::now()))
}

/// Shows it until the user or a signal has enough of it.
fn watch(flags: Flags) -> io::Result<()> {
    if !io::stdout().is_terminal() {
        return Err(io::Error::other("this is no terminal: --once prints what there is to see"));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, is_over.clone())?;
    }
    let mut model = Model::new(&flags.target);
    // A panic restores the terminal before it says what is wrong.
    let terminal = ratatui::try_init()?;
    let (tell, told) = channel();
    let asks = thread::Builder::new().name("asks".into()).spawn(move || {
        let Flags { target, interval, .. } = flags;
        fetch::follow(&target, interval, &tell)
    });
    let shown = asks.and_then(|_| show(terminal, &mut model, &told, &is_over));
    let restored = ratatui::try_restore();
    shown.and(restored)
}

fn show(
    mut terminal: DefaultTerminal,
    model: &mut Model,
    told: &Receiver<Result<Sample, String>>,
    is_over: &AtomicBool,
) -> io::Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        loop {
            match told.try_recv() {
                Ok(sample) => model.take(sample, Instant::now()),
                Err(TryRecvError::Empty) => break,
                // Its poller broke, or it has panicked.
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("nobody asks for figures any more"));
                }
            }
        }
        terminal.draw(|frame| view::draw(frame, model, Instant::now()))?;
        if event::poll(TICK)? {
            let quits = match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => !press(model, key),
                _ => false,
            };
            if quits {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// False for the keys that quit.
fn press(model: &mut Model, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') => return false,
        // In a terminal whose keys are read one by one it is no signal.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Down | KeyCode::Char('j') => model.select(1),
        KeyCode::Up | KeyCode::Char('k') => model.select(-1),
        KeyCode::Char('s') => model.change_order(),
        KeyCode::Char('p') => model.pause(),
        _ => {}
    }
    true
}

/// Prints, for as long as anybody listens.
fn say(text: &str) -> ExitCode {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

fn complain(code: u8, error: &dyn Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(code)
}
