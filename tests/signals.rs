//! Signals that interrupt the system calls of pollers.

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::{PATIENCE, Pattern, Peer, Setup};

on_every_setup!(signals_interrupt_nothing,);

fn signals_interrupt_nothing(setup: Setup) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing. Without SA_RESTART, so that calls are interrupted.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let server = setup.serve_echo();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                signal_pollers();
            }
        });
        scope.spawn(|| {
            let mut peer = Peer::connect(server.local_addr());
            let mut pattern = Pattern::new(3);
            for round in 0..300 {
                let message = pattern.next(1 + round * 100);
                assert!(peer.round_trip(message) == message, "another reply than was sent");
            }
            over.store(true, Ordering::Relaxed);
        });
    });
    assert_eq!(server.shutdown(PATIENCE), 0);
}

/// Sends a signal to every poller's thread of this process.
fn signal_pollers() {
    for task in fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let thread = task.file_name().to_string_lossy().parse::<i32>().expect("a number");
        if name.starts_with("duopoll-") {
            // SAFETY: takes no memory. The thread may be gone by now.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
        }
    }
}
