//! TCP proxies: each stands between the load generator and an echo server, and is what is measured.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;
use crate::servers::Role;

mod configurations;
mod floor;
#[cfg(feature = "tokio")]
mod tokio;

/// The proxy that every ratio refers to.
pub const YARDSTICK: &str = "haproxy";

/// One proxy.
#[derive(Debug)]
pub struct Server {
    /// The name on the command line and in the report.
    pub name: &'static str,
    /// One line for the list.
    pub about: &'static str,
    /// What it stands for in the report.
    pub role: Role,
    /// How it is started.
    pub start: Start,
    /// Whether it can use several threads in one process, whose time is then all there is.
    pub has_threads: bool,
    /// Whether its clients may speak TLS.
    pub speaks_tls: bool,
}

/// How a proxy is started.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// This project's example, on an engine.
    Ours(&'static str),
    /// HAProxy.
    Haproxy,
    /// nginx with its module `stream`.
    Nginx,
    /// In this executable.
    Function(fn(&Options) -> io::Result<()>),
}

/// What a proxy is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where to connect to.
    pub upstream: SocketAddr,
    /// Threads that relay.
    pub threads: usize,
    /// The folder of the certificate, if clients speak TLS.
    pub tls: Option<PathBuf>,
}

/// Programs of this project, which proxies are started as.
#[derive(Debug)]
pub struct Programs {
    /// The comparison itself.
    pub compare: PathBuf,
    /// The example.
    pub ours: PathBuf,
}

static ALL: &[Server] = &[
    Server {
        name: "haproxy",
        about: "HAProxy in TCP mode, with `splice-auto`",
        role: Role::Yardstick,
        start: Start::Haproxy,
        has_threads: true,
        speaks_tls: true,
    },
    Server {
        name: "nginx",
        about: "nginx's `stream`, one process",
        role: Role::Peer,
        start: Start::Nginx,
        has_threads: false,
        speaks_tls: true,
    },
    Server {
        name: "floor-copy",
        about: "written by hand on epoll, through one buffer",
        role: Role::Floor,
        start: Start::Function(floor::copy),
        has_threads: false,
        speaks_tls: false,
    },
    Server {
        name: "floor-splice",
        about: "written by hand on epoll, with `splice` through one pipe",
        role: Role::Floor,
        start: Start::Function(floor::spliced),
        has_threads: false,
        speaks_tls: false,
    },
    #[cfg(feature = "tokio")]
    Server {
        name: "tokio",
        about: "`copy_bidirectional` in a task for each connection, current-thread",
        role: Role::Peer,
        start: Start::Function(tokio::serve),
        has_threads: true,
        speaks_tls: cfg!(feature = "http"),
    },
    Server {
        name: "duopoll-epoll",
        about: "this project's example `proxy` on epoll",
        role: Role::Ours,
        start: Start::Ours("epoll"),
        has_threads: true,
        speaks_tls: true,
    },
    Server {
        name: "duopoll-uring",
        about: "this project's example `proxy` on io_uring",
        role: Role::Ours,
        start: Start::Ours("uring"),
        has_threads: true,
        speaks_tls: true,
    },
];

/// All of them, in the order of a round.
pub fn all() -> &'static [Server] {
    ALL
}

/// The one of that name.
pub fn find(name: &str) -> Option<&'static Server> {
    ALL.iter().find(|server| server.name == name)
}

/// Whether a proxy is there, or why it is not.
pub fn available(server: &Server) -> Result<(), String> {
    let missing = |program: &str| Err(format!("`{program}` is not installed: it is left out"));
    match server.start {
        Start::Haproxy if !process::have(&program("haproxy").to_string_lossy()) => {
            missing("haproxy")
        }
        Start::Nginx if !process::have(&program("nginx").to_string_lossy()) => missing("nginx"),
        Start::Nginx if !Path::new(configurations::NGINX_STREAM).exists() => {
            missing("libnginx-mod-stream")
        }
        _ => Ok(()),
    }
}

/// The command that runs a proxy, after its files are written below the folder.
pub fn command(
    server: &Server,
    options: &Options,
    programs: &Programs,
    folder: &Path,
) -> io::Result<Command> {
    let folder = folder.join(format!("proxy-{}", options.listen.port()));
    match server.start {
        Start::Ours(engine) => {
            let mut command = Command::new(&programs.ours);
            command
                .args(["--engine", engine, "--listen", &options.listen.to_string()])
                .args(["--upstream", &options.upstream.to_string(), "--health-interval", "0"])
                .args(["--pollers", &options.threads.to_string()]);
            if let Some(folder) = &options.tls {
                command.arg("--tls-certificate").arg(folder.join("certificate.pem"));
                command.arg("--tls-key").arg(folder.join("key.pem"));
            }
            Ok(command)
        }
        Start::Haproxy => {
            let file = written(&folder, "haproxy.cfg", &configurations::haproxy(options))?;
            let mut command = Command::new(program("haproxy"));
            command.arg("-db").arg("-f").arg(file);
            Ok(command)
        }
        Start::Nginx => {
            let text = configurations::nginx(options, &folder);
            let file = written(&folder, "nginx.conf", &text)?;
            let mut command = Command::new(program("nginx"));
            command.arg("-p").arg(&folder).arg("-c").arg(&file).args(["-e", "stderr"]);
            Ok(command)
        }
        Start::Function(_) => {
            let mut command = Command::new(&programs.compare);
            command
                .args(["proxy", server.name, "--listen", &options.listen.to_string()])
                .args(["--upstream", &options.upstream.to_string()])
                .args(["--threads", &options.threads.to_string()]);
            if let Some(folder) = &options.tls {
                command.arg("--tls").arg(folder);
            }
            Ok(command)
        }
    }
}

/// Some lie where only root looks for programs.
fn program(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() { sbin } else { name.into() }
}

fn written(folder: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let file = folder.join(name);
    fs::write(&file, text)?;
    Ok(file)
}
