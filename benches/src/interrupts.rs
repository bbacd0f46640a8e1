//! The kernel's threads that go on with the work of interrupts where there is too much of it.
//!
//! What a server sends over loopback is received in its own context, as long as that is little at a time. Else a thread
//! of the kernel goes on with it, one on each core: a third of what some servers cost with 100 connections of 1 MiB was in
//! there. It counts as the server's that has the core for itself, and as nobody else's disturbance.

use std::fs;
use std::io;
use std::sync::LazyLock;

use crate::sys;

/// How their names begin; a core's number follows.
pub const THREAD: &str = "ksoftirqd/";

/// The threads, with the cores that they belong to.
static THREADS: LazyLock<Vec<(usize, u32)>> = LazyLock::new(|| {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let thread = |entry: io::Result<fs::DirEntry>| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some((name.trim_end().strip_prefix(THREAD)?.parse().ok()?, pid))
    };
    entries.filter_map(thread).collect()
});

/// CPU time of a server, in nanoseconds: its own, and what was gone on with for it if it has a core for itself.
pub fn server_cpu_time_ns(pid: u32) -> io::Result<u64> {
    // First what takes a while the first time.
    let beside = sys::only_core(pid)?.map_or(0, |only| {
        let threads = THREADS.iter().filter(|(core, _)| *core == only);
        threads.filter_map(|(_, pid)| sys::cpu_time_ns(*pid).ok()).sum()
    });
    Ok(beside + sys::cpu_time_ns(pid)?)
}
