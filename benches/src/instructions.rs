//! Instructions a request, counted by callgrind in passes of their own: runs of one build differ by three per cent at most on a quiet
//! machine. Other load makes them more, by up to seven: fewer connections are ready in a turn then.
//!
//! A short and a long run are counted, and their difference is told, so that starting, connecting and ending do not count. Servers on
//! io_uring have no figure: valgrind keeps signals from a thread that waits there, so that they do not end.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Command;

use crate::process;

/// How long the two runs are, in milliseconds: a server is some fifty times slower there.
pub const RUNS_MS: [u64; 2] = [1000, 4000];

/// Whether instructions can be counted.
pub fn available() -> Result<(), String> {
    if process::have("valgrind") {
        Ok(())
    } else {
        Err("`valgrind` is not installed: instructions are not counted".into())
    }
}

/// Whether the instructions of a server can be counted, by its name.
pub fn countable(server: &str) -> bool {
    !server.contains("uring")
}

/// The command, under callgrind if there is a file to write to.
pub fn under(command: Command, file: Option<&Path>) -> Command {
    let Some(file) = file else { return command };
    let mut watched = Command::new("valgrind");
    watched.arg("--tool=callgrind");
    watched.arg(format!("--callgrind-out-file={}", file.display()));
    watched.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        watched.current_dir(folder);
    }
    watched
}

/// How many instructions a run took that has ended.
pub fn counted(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    totals(&text).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "callgrind wrote no totals"))
}

fn totals(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

/// Instructions a request, from those and the requests of both runs.
pub fn per_request([short, long]: [(u64, u64); 2]) -> f64 {
    (long.0 as f64 - short.0 as f64) / (long.1 as f64 - short.1 as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_runs_have_does_not_count() {
        assert_eq!(per_request([(1_000_000, 100), (1_400_000, 300)]), 2000.0);
    }

    #[test]
    fn totals_are_at_the_end() {
        assert_eq!(
            totals("version: 1\nsummary: 5\n\nfn=(1) main\n12 5\ntotals: 1234\n"),
            Some(1234)
        );
        assert_eq!(totals("version: 1\n"), None);
    }
}
