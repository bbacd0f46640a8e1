//! System calls per request, counted by `strace` in a pass of its own.
//!
//! strace slows the server so much that its timings mean nothing; the counts are exact. A slow
//! server sees full queues, so they are those of a saturated one.

use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::process;
use crate::sys;

/// Longest wait for strace to attach or to end.
const TIMEOUT: Duration = Duration::from_secs(5);

/// System calls of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Calls {
    /// All of them, per request.
    pub per_request: f64,
    /// The most frequent ones, per request.
    pub by_name: Vec<(String, f64)>,
}

/// Whether system calls can be counted.
pub fn available() -> Result<(), String> {
    if process::have("strace") {
        Ok(())
    } else {
        Err("`strace` is not installed: system calls are not counted".into())
    }
}

/// Counts the system calls that process `pid` makes while `work` runs. `work` returns the number of
/// requests.
pub fn count(pid: u32, core: usize, work: impl FnOnce() -> io::Result<u64>) -> io::Result<Calls> {
    let output = std::env::temp_dir().join(format!("duopoll-strace-{pid}"));
    let mut tool = Command::new("strace");
    tool.args(["-c", "-f", "-q", "-p", &pid.to_string(), "-o"])
        .arg(&output)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    process::on_core(&mut tool, core);
    let mut tracer = tool.spawn()?;
    let result = attached(pid).and_then(|()| work());
    // strace prints its table when it is interrupted.
    sys::kill(tracer.id(), libc::SIGINT)?;
    let deadline = Instant::now() + TIMEOUT;
    while tracer.try_wait()?.is_none() {
        if Instant::now() > deadline {
            tracer.kill()?;
            tracer.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let table = fs::read_to_string(&output);
    let _ = fs::remove_file(&output);
    let requests = result?;
    parse(&table?, requests).ok_or_else(|| io::Error::other("strace printed no table"))
}

/// Waits until every thread of the process is traced.
fn attached(pid: u32) -> io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut all = true;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            all &= !status.lines().any(|line| line == "TracerPid:\t0");
        }
        if all {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "strace does not attach"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Parses the table of `strace -c`: the fourth column is the number of calls, the last the name.
fn parse(table: &str, requests: u64) -> Option<Calls> {
    let mut total = None;
    let mut by_name = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(calls), Some(name)) = (fields.get(3), fields.last()) else {
            continue;
        };
        let Ok(calls) = calls.parse::<u64>() else {
            continue;
        };
        let per_request = calls as f64 / requests.max(1) as f64;
        if *name == "total" {
            total = Some(per_request);
        } else {
            by_name.push(((*name).to_owned(), per_request));
        }
    }
    by_name.sort_by(|a, b| b.1.total_cmp(&a.1));
    by_name.retain(|(_, per_request)| *per_request >= 0.01);
    Some(Calls { per_request: total?, by_name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_understood() {
        let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.060000           3     20000       100 recvfrom
 40.00    0.040000           4     10000           sendto
------ ----------- ----------- --------- --------- ----------------
100.00    0.100000           3     30000       100 total
";
        let calls = parse(table, 10_000).unwrap();
        assert_eq!(calls.per_request, 3.0);
        assert_eq!(calls.by_name, [("recvfrom".to_owned(), 2.0), ("sendto".to_owned(), 1.0)]);
        assert!(parse("", 1).is_none());
    }
}
