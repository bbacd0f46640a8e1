//! Keeps cores from halting, so that waking one always costs the same.
//!
//! Who sends to a process on another core wakes that core. If it has halted, that is an interrupt through the host of the
//! virtual machine; if it still looks for work before it halts, as idle cores do for a while, it is a store. Which
//! of them it is depends on microseconds, and the sender pays: replies of 64 KiB over one connection cost the same server 38 or
//! 45 µs. So a thread of the scheduling class that gives way to everybody runs on each core meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::sys;

/// Cores that do not halt while this lives.
pub struct Awake {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Awake {
    /// Keeps these cores awake.
    pub fn new(cores: impl IntoIterator<Item = usize>) -> Awake {
        let stop = Arc::new(AtomicBool::new(false));
        let keep = |core| {
            let stop = stop.clone();
            thread::spawn(move || {
                sys::give_way_to_all()?;
                sys::pin_to_core(core)?;
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                Ok(())
            })
        };
        let threads = cores.into_iter().map(keep).collect();
        Awake { stop, threads }
    }

    /// Lets them halt again; an error if one of them could not be kept awake.
    pub fn end(mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| io::Error::other("a thread that keeps a core awake panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
