//! What the machine did beside a run: how much of its processors others used, and how much the host kept for itself.

use std::fs;
use std::io::{self, ErrorKind};

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
    busy_ns: u64,
    stolen_ns: u64,
    ours_ns: u64,
    now_ns: u64,
}

impl Watch {
    /// Begins to watch.
    pub fn start() -> io::Result<Watch> {
        let (busy_ns, stolen_ns) = machine_ns()?;
        // Children count when they have ended.
        let ours_ns = sys::own_cpu_time_ns()? + sys::children_cpu_time_ns()?;
        let ours_ns = ours_ns + interrupts::cpu_time_ns();
        Ok(Watch { busy_ns, stolen_ns, ours_ns, now_ns: sys::now_ns() })
    }

    /// What has been since; all processes of the run have ended.
    pub fn stop(&self) -> io::Result<Disturbance> {
        let now = Watch::start()?;
        let wall_ns = (now.now_ns - self.now_ns).max(1) as f64;
        let ours_ns = now.ours_ns - self.ours_ns;
        let others_ns = (now.busy_ns - self.busy_ns).saturating_sub(ours_ns);
        Ok(Disturbance {
            others: others_ns as f64 / wall_ns,
            stolen: (now.stolen_ns - self.stolen_ns) as f64 / wall_ns,
        })
    }
}

/// What all processors have worked since the machine booted, and what its host has kept of them.
fn machine_ns() -> io::Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    times(&text).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no CPU times in /proc/stat"))
}

/// See proc_stat(5): the first line is that of all processors.
fn times(stat: &str) -> Option<(u64, u64)> {
    let fields = stat.lines().next()?.split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else {
        return None;
    };
    Some(((user + nice + system + irq + softirq) * TICK_NS, steal * TICK_NS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_no_work() {
        let stat = "cpu  1 2 3 1000 500 4 5 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(times(stat), Some((15 * TICK_NS, 7 * TICK_NS)));
        assert_eq!(times("intr 1 2"), None);
    }

    #[test]
    fn either_is_much() {
        let quiet = Disturbance { others: OTHERS_MAX, stolen: STOLEN_MAX };
        assert!(!quiet.is_much());
        assert!(Disturbance { others: 0.2, ..quiet }.is_much());
        assert!(Disturbance { stolen: 0.1, ..quiet }.is_much());
    }
}
