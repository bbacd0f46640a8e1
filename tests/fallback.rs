//! Without io_uring: `auto` serves on epoll and says why, `uring` refuses and explains.
//!
//! io_uring is refused by a seccomp filter, as a container's would, in a child process that runs an example.

mod support;

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use support::{Peer, example};

/// The three ways in which sandboxes and kernels refuse.
const REFUSALS: [i32; 3] = [libc::EPERM, libc::ENOSYS, libc::EACCES];

/// `io_uring_setup`, `io_uring_enter` and `io_uring_register`, on every architecture.
const IO_URING_CALLS: std::ops::RangeInclusive<u32> = 425..=427;

/// Answers io_uring's system calls with an errno, in this process and its children, for good.
fn refuse_io_uring(errno: i32) -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The number of the system call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, *IO_URING_CALLS.start(), 0, 2),
        jump(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, *IO_URING_CALLS.end(), 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl(2) copies the program during the call.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    if installed { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn echo_without_io_uring(engine: &str, errno: i32) -> Child {
    let mut command = Command::new(example("echo"));
    command.args(["--listen", "127.0.0.1:0", "--engine", engine]);
    command.env_remove("DUOPOLL_ENGINE").stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: the filter is installed by system calls alone, which are allowed between fork and exec.
    unsafe { command.pre_exec(move || refuse_io_uring(errno)) };
    command.spawn().expect("the example starts")
}

fn errno_text(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

#[test]
fn auto_serves_on_epoll_and_says_why() {
    for errno in REFUSALS {
        let mut child = echo_without_io_uring("auto", errno);
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut ready).expect("a line");
        let address = ready.split(' ').nth(2).expect("listening on ADDRESS").to_owned();
        assert!(ready.contains(" engine=epoll "), "{ready}");

        let mut peer = Peer::connect(&address.parse().expect("an address"));
        assert_eq!(peer.round_trip(b"served"), b"served");

        // SAFETY: kill(2) takes no memory.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        assert!(child.wait().expect("an end").success());
        let mut complaint = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        stderr.read_to_string(&mut complaint).expect("text");
        for part in [&errno_text(errno), "io_uring_setup", "likely cause", "remedy"] {
            assert!(complaint.contains(part), "no `{part}` in: {complaint}");
        }
    }
}

#[test]
fn uring_refuses_and_explains() {
    for errno in REFUSALS {
        let output = echo_without_io_uring("uring", errno).wait_with_output().expect("an end");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        for part in [&errno_text(errno), "io_uring_setup", "likely cause", "remedy"] {
            assert!(complaint.contains(part), "no `{part}` in: {complaint}");
        }
    }
}
