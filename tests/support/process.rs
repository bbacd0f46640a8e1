//! An example server in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use duopoll::Address;

/// A server that runs, until it is told to end.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub address: Address,
    /// Where it tells its figures, if it does.
    pub metrics: Option<Address>,
}

impl Process {
    /// Runs a server that says on its first line where it listens.
    pub fn start(mut command: Command) -> Process {
        command.stdout(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut ready = String::new();
        stdout.read_line(&mut ready).expect("a line");
        let address = ready.split(' ').nth(2).expect("listening on ADDRESS").parse();
        let metrics = ready.split(' ').find_map(|word| word.strip_prefix("metrics="));
        let metrics = metrics.map(|address| address.parse().expect("an address"));
        Process { child, stdout, address: address.expect("an address"), metrics }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("procfs")
    }

    pub fn processor_time(&self) -> Duration {
        let stat = self.proc("stat");
        let fields: Vec<_> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        let ticks = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number"));
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    pub fn resident_bytes(&self) -> usize {
        let status = self.proc("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        let kib = line.split_whitespace().nth(1).expect("a figure");
        kib.parse::<usize>().expect("a number") * 1024
    }

    pub fn open_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("procfs").count()
    }

    /// Stops all its threads. Returns when they stand still.
    pub fn stop(&self) {
        let child = self.child.id() as i32;
        let mut status = 0;
        // SAFETY: the child is ours, and the status lives longer than the call.
        unsafe {
            libc::kill(child, libc::SIGSTOP);
            assert_eq!(libc::waitpid(child, &raw mut status, libc::WUNTRACED), child);
        }
        assert!(libc::WIFSTOPPED(status), "it has ended: {status}");
    }

    /// Has a process that was stopped go on.
    pub fn go_on(&self) {
        // SAFETY: kill(2) takes no memory.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGCONT) };
    }

    /// Tells it to end.
    pub fn terminate(&self) {
        // SAFETY: kill(2) takes no memory.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
    }

    /// Has it end, and gives what else it has printed.
    pub fn end(mut self) -> String {
        self.terminate();
        assert!(self.child.wait().expect("an end").success());
        let mut printed = String::new();
        self.stdout.read_to_string(&mut printed).expect("text");
        printed
    }
}

/// When a test fails, its server ends too.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
