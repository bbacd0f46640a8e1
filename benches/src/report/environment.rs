//! The machine, the kernel and the versions, for the head of the report.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The name of this project's revision.
pub const OURS: &str = "duopoll";

/// Crates whose versions the report names: how those begin that only some features take, and whether they are in this build.
const CRATES: [(&str, &str, bool); 18] = [
    ("tokio", "", cfg!(feature = "tokio")),
    ("monoio", "", cfg!(feature = "monoio")),
    ("compio", "", cfg!(feature = "compio")),
    ("glommio", "", cfg!(feature = "glommio")),
    ("may", "", cfg!(feature = "may")),
    ("io-uring", "0.6.", cfg!(feature = "monoio")),
    ("io-uring", "", true),
    ("hyper", "", cfg!(feature = "http")),
    ("axum", "", cfg!(feature = "http")),
    ("tonic", "", cfg!(feature = "http")),
    ("rustls", "0.21.", cfg!(feature = "monoio-http")),
    ("rustls", "", cfg!(feature = "http")),
    ("ring", "", cfg!(feature = "http")),
    ("quinn", "", cfg!(feature = "quic")),
    ("quinn-proto", "", cfg!(feature = "quic")),
    ("quinn-udp", "0.5.", cfg!(feature = "quic")),
    ("quinn-udp", "", cfg!(feature = "quinn-udp")),
    ("compio-quic", "", cfg!(feature = "compio-quic")),
];

/// Whether a version is told: what the first line says that it fits.
fn is_told(name: &str, version: &str) -> bool {
    let line = CRATES.iter().find(|(of, begins, _)| *of == name && version.starts_with(begins));
    line.is_some_and(|(.., is_built)| *is_built)
}

/// Everything that is known, as pairs of a name and a value.
pub fn describe() -> Vec<(String, String)> {
    let mut pairs = vec![("date".to_owned(), date())];
    let mut add = |name: &str, value: Option<String>| {
        pairs.extend(value.map(|value| (name.to_owned(), value)));
    };
    add("processor", processor());
    add("cores", std::thread::available_parallelism().ok().map(|cores| cores.to_string()));
    add("kernel", read_line("/proc/sys/kernel/osrelease"));
    add(OURS, revision());
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

/// What git calls the files that this is built of, if they are in a tree of its own.
fn revision() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    // Not of a tree that this one was unpacked in.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let is_own = fs::canonicalize(top).ok()? == fs::canonicalize(root).ok()?;
    is_own.then(|| git(&["describe", "--always", "--dirty"]))?
}

/// Versions of the compared crates that are in this build, from the lock file of the package or of its workspace.
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
            && is_told(name, version)
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
    fn crates_of_other_builds_are_not_told() {
        let told = locked_versions();
        let has = |name| told.iter().any(|(told, _)| told == name);
        assert!(has("io-uring"));
        assert_eq!(has("tokio"), cfg!(feature = "tokio"));
        assert_eq!(has("glommio"), cfg!(feature = "glommio"));
        assert_eq!(has("quinn"), cfg!(feature = "quic"));
        assert_eq!(is_told("rustls", "0.21.12"), cfg!(feature = "monoio-http"));
        assert!(!is_told("serde", "1.0.0"));
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_453), (2025, 12, 31));
    }
}
