//! What is logged goes to the standard error, by a thread of its own: whoever reads it slowly, or not at all, holds up no poller, and
//! what finds no room is left out.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::WorkerGuard;

use crate::config::Log;

/// Begins to log. What was logged is written when the guard is dropped.
pub(crate) fn begin(log: Log) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(io::stderr());
    let level = if log.verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let subscriber = tracing_subscriber::fmt().with_writer(writer).with_max_level(level);
    if log.json {
        subscriber.json().init();
    } else {
        subscriber.with_ansi(false).init();
    }
    guard
}
