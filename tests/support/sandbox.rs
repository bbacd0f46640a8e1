//! A seccomp filter that refuses system calls, as a container's would, or as an old kernel does.

use std::io;
use std::ops::RangeInclusive;
use std::thread;

/// `io_uring_setup`, on every architecture.
pub const SETUP: u32 = 425;
/// `io_uring_enter`.
pub const ENTER: u32 = 426;
/// `io_uring_register`.
pub const REGISTER: u32 = 427;

/// Answers these system calls with an errno, in all threads of this process and in its children, for good.
///
/// Makes system calls only, which is allowed between fork and exec.
pub fn refuse(calls: RangeInclusive<u32>, errno: i32) -> io::Result<()> {
    install(calls, errno, libc::SECCOMP_FILTER_FLAG_TSYNC)
}

/// Does something on a thread for which a system call (`libc::SYS_…`) is answered with an errno. So it is for the
/// threads that it starts.
pub fn without<T: Send>(call: libc::c_long, errno: i32, work: impl FnOnce() -> T + Send) -> T {
    let call = u32::try_from(call).expect("a system call");
    thread::scope(|scope| {
        let sandboxed = scope.spawn(|| {
            install(call..=call, errno, 0).expect("filters are allowed");
            work()
        });
        sandboxed.join().expect("no panic")
    })
}

fn install(calls: RangeInclusive<u32>, errno: i32, flags: libc::c_ulong) -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The number of the system call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, *calls.start(), 0, 2),
        jump(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, *calls.end(), 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: seccomp(2) copies the program during the call.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter) == 0
    };
    if installed { Ok(()) } else { Err(io::Error::last_os_error()) }
}
