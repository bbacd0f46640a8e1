//! Pollers whose engine breaks: somebody has put another file in the place of its descriptor.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};

use duopoll::Pollers;

use super::settled::Settled;
use super::{Setup, eventually};

/// Pollers that can be broken, one after the other.
#[derive(Debug)]
pub struct Breakable {
    pub pollers: Pollers,
    engines: Vec<RawFd>,
}

impl Breakable {
    pub fn start(setup: Setup, count: usize) -> Breakable {
        // What the self-test of io_uring opens is closed by then.
        drop(setup.pollers(1));
        let before = engines();
        let pollers = setup.pollers(count);
        let engines: Vec<_> = engines().difference(&before).copied().collect();
        assert_eq!(engines.len(), count, "an engine has one descriptor of its kind");
        Breakable { pollers, engines }
    }

    /// Breaks one that runs, and waits until it has ended.
    pub fn break_one(&mut self) {
        let engine = self.engines.pop().expect("one that runs");
        self.break_engine(engine);
    }

    /// As `break_one`, the one on which a server's listener is.
    pub fn break_first(&mut self) {
        let engine = self.engines.remove(0);
        self.break_engine(engine);
    }

    fn break_engine(&self, engine: RawFd) {
        let other = File::open("/dev/null").expect("a file");
        let failed = self.pollers.settled().failed_pollers;
        // SAFETY: takes no memory. The number stays taken, so that whoever owns it closes this file.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), engine) }, engine);
        eventually("it has failed", || self.pollers.settled().failed_pollers == failed + 1);
    }
}

/// The descriptors of engines that this process has.
fn engines() -> BTreeSet<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").expect("procfs");
    let kind = |path: &std::path::Path| {
        let target = fs::read_link(path).ok()?;
        let target = target.to_string_lossy().into_owned();
        (target.contains("[eventpoll]") || target.contains("[io_uring]")).then_some(())
    };
    let numbered = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        kind(&path)?;
        path.file_name()?.to_str()?.parse().ok()
    });
    numbered.collect()
}
