//! Keeps processors from halting, so that waking one always costs the same.
//!
//! Who sends to a process on another processor wakes that processor. If it has halted, that is an interrupt through the host of the
//! virtual machine; if it still looks for work before it halts, as idle ones do for a while, it is a store. Which
//! of them it is depends on microseconds, and the sender pays: replies of 64 KiB over one connection cost the same server 38 or
//! 45 µs. So they look for work all the time meanwhile, which is what the kernel does as long as somebody has asked it for
//! wake-ups without any latency. A busy thread on each is no substitute: to have it give way is an interrupt each time.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};

/// See the kernel's `Documentation/power/pm_qos_interface.rst`.
const LATENCY: &str = "/dev/cpu_dma_latency";
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// No processor halts while this lives.
#[must_use]
pub struct Awake {
    _request: File,
}

impl Awake {
    /// Has all processors look for work instead of halting.
    ///
    /// # Errors
    /// The kernel has no driver that does so, or does not take this from anybody but root.
    pub fn keep() -> io::Result<Awake> {
        let driver = fs::read_to_string(DRIVER).unwrap_or_default();
        if driver.trim().is_empty() || driver.trim() == "none" {
            return Err(io::Error::new(ErrorKind::Unsupported, "the kernel has no cpuidle driver"));
        }
        let of = |error: io::Error| io::Error::new(error.kind(), format!("{LATENCY}: {error}"));
        let mut request = File::options().write(true).open(LATENCY).map_err(of)?;
        // Microseconds, as a number of 32 bits. They hold until the file is closed.
        request.write_all(&0_i32.to_ne_bytes()).map_err(of)?;
        Ok(Awake { _request: request })
    }

    /// The same, for a program that goes on without it and says so.
    pub fn keep_or_say() -> Option<Awake> {
        Awake::keep().inspect_err(|error| eprintln!("note: {}", Awake::missing(error))).ok()
    }

    /// What a report has to say when they halt.
    pub fn missing(error: &io::Error) -> String {
        format!("processors may halt, and waking one costs by chance: {error}")
    }
}
