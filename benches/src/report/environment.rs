//! The machine, the kernel and the versions, for the head of the report.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Crates whose versions the report names.
const CRATES: [&str; 15] = [
    "tokio",
    "monoio",
    "compio",
    "glommio",
    "may",
    "io-uring",
    "hyper",
    "axum",
    "tonic",
    "rustls",
    "ring",
    "quinn",
    "quinn-proto",
    "quinn-udp",
    "compio-quic",
];

/// Everything that is known, as pairs of a name and a value.
pub fn describe() -> Vec<(String, String)> {
    let mut pairs = vec![("date".to_owned(), date())];
    let mut add = |name: &str, value: Option<String>| {
        pairs.extend(value.map(|value| (name.to_owned(), value)));
    };
    add("processor", processor());
    add("cores", std::thread::available_parallelism().ok().map(|cores| cores.to_string()));
    add("kernel", read_line("/proc/sys/kernel/osrelease"));
    add("rustc", first_line("rustc", &["--version"]));
    add("go", first_line("go", &["version"]));
    add("redis", first_line("redis-server", &["--version"]));
    // It says its version and then how it is used.
    add("wrk", first_line("wrk", &["--version"]));
    add("h2load", first_line("h2load", &["--version"]));
    add("strace", first_line("strace", &["--version"]));
    for (name, version) in locked_versions() {
        add(&name, Some(version));
    }
    pairs
}

fn read_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next()?.trim().to_owned())
}

/// Versions of the compared crates, from the lock file of the package or of its workspace.
fn locked_versions() -> Vec<(String, String)> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(lock) = [package.join("Cargo.lock"), package.join("../Cargo.lock")]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
    else {
        return Vec::new();
    };
    let mut found: Vec<(String, String)> = Vec::new();
    let mut name = "";
    for line in lock.lines() {
        let quoted = |rest: &'static str| line.strip_prefix(rest)?.strip_suffix('"');
        if let Some(value) = quoted("name = \"") {
            name = value;
        } else if let Some(version) = quoted("version = \"")
            && CRATES.contains(&name)
        {
            match found.iter_mut().find(|(known, _)| known == name) {
                Some((_, versions)) => *versions = format!("{versions}, {version}"),
                None => found.push((name.to_owned(), version.to_owned())),
            }
        }
    }
    found
}

/// Today in UTC, as YYYY-MM-DD.
fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The Gregorian date of a day since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut left = days;
    let mut year = 1970;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_453), (2025, 12, 31));
    }
}
