//! Without io_uring: `auto` serves on epoll and says why, `uring` refuses and explains.
//!
//! io_uring is refused by a seccomp filter, as a container's would, in a child process that runs an example.

#[path = "support/example.rs"]
mod example;
mod support;

use std::io::{self, BufRead, BufReader, Read};
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use example::example;
use support::Peer;
use support::sandbox::{ENTER, REGISTER, SETUP, refuse};

/// The three ways in which sandboxes and kernels refuse.
const REFUSALS: [i32; 3] = [libc::EPERM, libc::ENOSYS, libc::EACCES];

/// What is refused, and which call the engine says has failed.
const REFUSED: [(RangeInclusive<u32>, &str); 4] = [
    (SETUP..=REGISTER, "io_uring_setup"),
    (SETUP..=SETUP, "io_uring_setup"),
    (ENTER..=ENTER, "io_uring_enter"),
    (REGISTER..=REGISTER, "io_uring_register"),
];

fn echo_without_io_uring(engine: &str, calls: RangeInclusive<u32>, errno: i32) -> Child {
    let mut command = Command::new(example("echo"));
    command.args(["--listen", "127.0.0.1:0", "--engine", engine]);
    command.env_remove("DUOPOLL_ENGINE").stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: the filter is installed by system calls alone, which are allowed between fork and exec.
    unsafe { command.pre_exec(move || refuse(calls.clone(), errno)) };
    command.spawn().expect("the example starts")
}

fn refusals() -> impl Iterator<Item = (i32, (RangeInclusive<u32>, &'static str))> {
    REFUSALS.into_iter().flat_map(|errno| REFUSED.map(|refused| (errno, refused)))
}

fn errno_text(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

#[test]
fn auto_serves_on_epoll_and_says_why() {
    for (errno, (calls, step)) in refusals() {
        let mut child = echo_without_io_uring("auto", calls, errno);
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut ready).expect("a line");
        let address = ready.split(' ').nth(2).expect("listening on ADDRESS").to_owned();
        assert!(ready.contains(" engine=epoll "), "{ready}");

        let mut peer = Peer::connect(&address.parse().expect("an address"));
        assert_eq!(peer.round_trip(b"served"), b"served");
        // Whom the server would wait for.
        drop(peer);

        // SAFETY: kill(2) takes no memory.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        assert!(child.wait().expect("an end").success());
        let mut complaint = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        stderr.read_to_string(&mut complaint).expect("text");
        for part in [&errno_text(errno), step, "likely cause", "remedy"] {
            assert!(complaint.contains(part), "no `{part}` in: {complaint}");
        }
    }
}

#[test]
fn uring_refuses_and_explains() {
    for (errno, (calls, step)) in refusals() {
        let child = echo_without_io_uring("uring", calls, errno);
        let output = child.wait_with_output().expect("an end");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        for part in [&errno_text(errno), step, "likely cause", "remedy"] {
            assert!(complaint.contains(part), "no `{part}` in: {complaint}");
        }
    }
}
