//! Children that are forked while connections are open.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::thread;

use support::{Pattern, Peer, Setup};

on_every_setup!(a_child_that_is_forked_disturbs_nobody,);

/// A child of this process that has its memory, and does nothing.
struct Child(libc::pid_t);

impl Child {
    fn fork() -> Child {
        // SAFETY: the child makes system calls only.
        let child = unsafe {
            let child = libc::fork();
            if child == 0 {
                // What it has of its parent's would keep that open.
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
                loop {
                    libc::pause();
                }
            }
            child
        };
        assert!(child > 0, "{}", std::io::Error::last_os_error());
        Child(child)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the child is ours, and has not been waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// A fork has every page copied that is written from then on, by the kernel or for it; and who has a ring mapped could
/// submit to it.
fn a_child_that_is_forked_disturbs_nobody(setup: Setup) {
    let server = setup.serve_echo();
    let mut peer = Peer::connect(server.local_addr());
    let mut pattern = Pattern::new(23);
    let mut converse = || {
        // More than all buffers of a ring have room for, several times.
        for _ in 0..400 {
            let message = pattern.next(64 << 10);
            let mut sender = peer.try_clone();
            thread::scope(|scope| {
                scope.spawn(move || sender.write_all(message).expect("sent"));
                let mut reply = vec![0; message.len()];
                peer.read_exact(&mut reply).expect("a reply");
                assert!(reply == message, "another reply than was sent");
            });
        }
    };
    let child = Child::fork();
    let mapped = fs::read_to_string(format!("/proc/{}/maps", child.0)).expect("procfs");
    assert!(!mapped.contains("io_uring"), "{mapped}");
    converse();
    let second = Child::fork();
    drop(child);
    converse();
    drop(second);
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
}
