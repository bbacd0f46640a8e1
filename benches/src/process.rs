//! Processes: starting servers on a core, waiting until they listen, reading their memory.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::sys;

/// How long a server may take to listen.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to end; under valgrind it writes down what it has counted.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a datagram may be under way before it counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(50);
/// Listen ports stay below the ephemeral range, which starts at 32,768.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Addresses handed out by this process.
static ADDRESSES: AtomicU32 = AtomicU32::new(0);

/// A running server; killed when dropped.
pub struct ServerProcess {
    child: Child,
    /// The socket to remove in the end.
    path: Option<PathBuf>,
}

impl ServerProcess {
    /// Starts `command` on `core`, or wherever the kernel wants, and waits until it accepts connections on `listen`.
    pub fn start(
        command: Command,
        core: impl Into<Option<usize>>,
        listen: &Address,
    ) -> io::Result<Self> {
        let mut server = ServerProcess::spawn(command, core)?;
        if let Address::Unix(path) = listen {
            server.path = Some(path.clone());
        }
        server.wait_ready(listen, || match listen {
            Address::Tcp(addr) => TcpStream::connect(addr).map(drop),
            Address::Unix(path) => UnixStream::connect(path).map(drop),
        })?;
        Ok(server)
    }

    /// The same for a server of datagrams: waits until it answers `greeting`.
    pub fn start_datagrams(
        command: Command,
        core: impl Into<Option<usize>>,
        listen: SocketAddrV4,
        greeting: &[u8],
    ) -> io::Result<Self> {
        let mut server = ServerProcess::spawn(command, core)?;
        let socket = UdpSocket::bind((*listen.ip(), 0))?;
        socket.connect(listen)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        server.wait_ready(listen, || {
            socket.send(greeting)?;
            socket.recv(&mut [0; 16]).map(drop)
        })?;
        Ok(server)
    }

    fn spawn(mut command: Command, core: impl Into<Option<usize>>) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        on_core(&mut command, core);
        let child = command.spawn().map_err(|error| {
            let program = command.get_program().to_string_lossy();
            io::Error::new(error.kind(), format!("{program}: {error}"))
        })?;
        Ok(ServerProcess { child, path: None })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits until it has. One that does not is killed.
    pub fn terminate(mut self) -> io::Result<()> {
        sys::kill(self.pid(), libc::SIGTERM)?;
        let deadline = Instant::now() + END_TIMEOUT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                let why = format!("the server has not ended {END_TIMEOUT:?} after SIGTERM");
                return Err(io::Error::new(ErrorKind::TimedOut, why));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn wait_ready(
        &mut self,
        listen: impl fmt::Display,
        mut reach: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let Err(refused) = reach() else {
                return Ok(());
            };
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!(
                    "the server ended with {status}: {}",
                    self.complaint()
                )));
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    ErrorKind::TimedOut,
                    format!("the server does not listen on {listen}: {refused}"),
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What an ended server wrote to stderr.
    fn complaint(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        text.trim().to_owned()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes a command run on one core, or wherever the kernel wants, and die with this process.
pub fn on_core(command: &mut Command, core: impl Into<Option<usize>>) {
    let core = core.into();
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            sys::die_with_parent()?;
            core.map_or(Ok(()), sys::pin_to_core)
        });
    }
}

/// A free TCP port on 127.0.0.1, never the same twice in a row: the last server's connections may
/// linger.
pub fn tcp_address() -> io::Result<Address> {
    free_port(|addr| TcpListener::bind(addr).map(drop)).map(|addr| Address::Tcp(addr.into()))
}

/// A free UDP port on 127.0.0.1, never the same twice in a row: datagrams for the last one may be under way.
pub fn udp_address() -> io::Result<SocketAddrV4> {
    free_port(|addr| UdpSocket::bind(addr).map(drop))
}

fn free_port(bind: impl Fn(SocketAddrV4) -> io::Result<()>) -> io::Result<SocketAddrV4> {
    // Two comparisons at once start at different ports.
    let offset = std::process::id().wrapping_mul(37);
    for _ in PORTS {
        let span = u32::from(PORTS.end - PORTS.start);
        let step = offset.wrapping_add(ADDRESSES.fetch_add(1, Ordering::Relaxed)) % span;
        let addr = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORTS.start + step as u16);
        if bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    Err(io::Error::new(ErrorKind::AddrInUse, "no free listen port"))
}

/// A socket path that does not exist yet.
pub fn unix_address() -> Address {
    let count = ADDRESSES.fetch_add(1, Ordering::Relaxed);
    let name = format!("duopoll-compare-{}-{count}.sock", std::process::id());
    let path = std::env::temp_dir().join(name);
    let _ = fs::remove_file(&path);
    Address::Unix(path)
}

/// Resident memory of a process in KiB, exact where the kernel has `smaps_rollup`: the cheap
/// counters are kept per CPU and lag behind.
pub fn rss_kib(pid: u32) -> io::Result<u64> {
    let exact = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let text = match exact {
        Ok(text) => text,
        Err(_) => fs::read_to_string(format!("/proc/{pid}/status"))?,
    };
    text.lines()
        .find_map(|line| line.strip_prefix("Rss:").or_else(|| line.strip_prefix("VmRSS:")))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no resident size in /proc"))
}

/// The folder that cargo is told to build in, if it is told.
fn told_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty())?;
    std::path::absolute(folder).ok()
}

/// Where results go if nothing is said.
pub fn results_folder() -> PathBuf {
    told_folder().unwrap_or_else(|| "target".into()).join("compare")
}

/// The folder that cargo builds in: that which it is told, or else two levels above a program of its own, three above a test.
pub fn target_folder() -> PathBuf {
    if let Some(folder) = told_folder() {
        return folder;
    }
    let executable = std::env::current_exe().unwrap_or_default();
    let mut folders = executable.ancestors().skip(1).skip_while(|folder| folder.ends_with("deps"));
    folders.nth(1).unwrap_or(Path::new("target")).to_owned()
}

/// Has cargo build something, or says why there is none.
pub fn build(what: &str, arguments: &[&str]) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .arg("build")
        .args(arguments)
        .arg("--target-dir")
        .arg(target_folder())
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cargo build: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{what} does not build and is left out: {}", complaint.trim()))
}

/// How a program ends: with what went wrong on its standard error, if anything did.
pub fn exit_code(program: &str, result: Result<(), impl fmt::Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether a program can be started.
pub fn have(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    std::env::var_os("PATH").is_some_and(|paths| {
        std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
    })
}
