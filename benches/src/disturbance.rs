//! What the machine did beside a run: how much of its processors others used, and how much the host kept for itself.

use std::fs;
use std::io::{self, ErrorKind};
use std::process;

use serde::{Deserialize, Serialize};

use crate::{interrupts, sys};

/// The kernel counts in ticks of 10 ms.
const TICK_NS: u64 = 10_000_000;
/// More of a processor than this, used by others, disturbs: a quiet machine shows 1 to 3 %.
const OTHERS_MAX: f64 = 0.08;
/// More of a processor than this, kept by the host, disturbs.
const STOLEN_MAX: f64 = 0.02;

/// Shares of one processor, over a run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Disturbance {
    /// Used by processes that have no part in it.
    pub others: f64,
    /// Kept by the host of a virtual machine.
    pub stolen: f64,
}

impl Disturbance {
    /// Whether the run is worth repeating.
    pub fn is_much(&self) -> bool {
        self.others > OTHERS_MAX || self.stolen > STOLEN_MAX
    }

    /// Both together.
    pub fn sum(&self) -> f64 {
        self.others + self.stolen
    }
}

/// The clocks at the beginning of a run.
pub struct Watch {
    others_ns: u64,
    stolen_ns: u64,
    now_ns: u64,
}

impl Watch {
    /// Begins to watch.
    pub fn start() -> io::Result<Watch> {
        Ok(Watch { others_ns: others_ns()?, stolen_ns: stolen_ns()?, now_ns: sys::now_ns() })
    }

    /// What has been since; all processes of the run have ended.
    pub fn stop(&self) -> io::Result<Disturbance> {
        let now = Watch::start()?;
        let wall_ns = (now.now_ns - self.now_ns).max(1) as f64;
        // One that nobody waits for takes its clock with it.
        let others_ns = now.others_ns.saturating_sub(self.others_ns);
        let stolen_ns = now.stolen_ns - self.stolen_ns;
        Ok(Disturbance { others: others_ns as f64 / wall_ns, stolen: stolen_ns as f64 / wall_ns })
    }
}

/// What others have worked: all processes that there are, with those that they have waited for, but this one. The sum of their clocks,
/// since with many wake-ups the machine counts a fifth of a processor more as busy than all threads together had.
fn others_ns() -> io::Result<u64> {
    let ticks = fs::read_dir("/proc")?.filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        if pid == process::id() {
            return None;
        }
        worked(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    });
    Ok(ticks.sum::<u64>() * TICK_NS)
}

/// What a process has worked, with those that it has waited for, in ticks; see proc_pid_stat(5). None for the threads of the kernel
/// that go on with what a server sends.
fn worked(stat: &str) -> Option<u64> {
    let (name, fields) = stat.rsplit_once(')')?;
    if name.contains(interrupts::THREAD) {
        return None;
    }
    let times: Option<Vec<u64>> =
        fields.split_whitespace().skip(11).take(4).map(|field| field.parse().ok()).collect();
    Some(times.filter(|times| times.len() == 4)?.iter().sum())
}

/// What the host has kept of all processors.
fn stolen_ns() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    let stolen = stolen(&text).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "/proc/stat"));
    Ok(stolen? * TICK_NS)
}

/// In ticks; see proc_stat(5): the first line is that of all processors.
fn stolen(stat: &str) -> Option<u64> {
    stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().nth(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn all_that_others_do_counts() {
        let stat =
            |name| format!("12 ({name}) S 1 1 1 0 -1 4194560 1 2 3 4 50 60 700 800 20 0 1 0");
        assert_eq!(worked(&stat("a) S 1 (b")), Some(1610));
        assert_eq!(worked(&stat("ksoftirqd/1")), None);
        assert_eq!(worked("12 (cut) S 1 1 1 0 -1 4194560 1 2 3 4 50 60 700"), None);
        let stat = "cpu  1 2 3 1000 500 4 5 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(stolen(stat), Some(7));
        assert_eq!(stolen("intr 1 2"), None);
    }

    #[test]
    fn a_busy_neighbour_is_seen() {
        let watch = Watch::start().expect("/proc");
        let spins = process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn();
        let mut neighbour = spins.expect("sh");
        while sys::cpu_time_ns(neighbour.id()).is_ok_and(|ns| ns < 5 * TICK_NS) {
            thread::yield_now();
        }
        let disturbance = watch.stop();
        neighbour.kill().and_then(|()| neighbour.wait()).expect("it ends");
        assert!(disturbance.expect("/proc").others > 0.0);
    }

    #[test]
    fn either_is_much() {
        let quiet = Disturbance { others: OTHERS_MAX, stolen: STOLEN_MAX };
        assert!(!quiet.is_much());
        assert!(Disturbance { others: 0.2, ..quiet }.is_much());
        assert!(Disturbance { stolen: 0.1, ..quiet }.is_much());
    }
}
