//! An example server with the clients that people have: on each engine, with TLS and without.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use duopoll::Address;

use crate::support::process::Process;

/// Each test is one on each engine, with TLS and without, with the given server.
#[macro_export]
macro_rules! on_every_site {
    ($start:expr; $($name:ident,)*) => {
        $crate::on_every_site!(@ epoll, $start, "epoll", false, $($name)*);
        $crate::on_every_site!(@ epoll_tls, $start, "epoll", true, $($name)*);
        $crate::on_every_site!(@ uring, $start, "uring", false, $($name)*);
        $crate::on_every_site!(@ uring_tls, $start, "uring", true, $($name)*);
    };
    (@ $module:ident, $start:expr, $engine:literal, $tls:literal, $($name:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::common::site::Site::start($start, $engine, $tls));
                }
            )*
        }
    };
}

/// A server of an example's, and the file that its certificate is in.
pub struct Site {
    pub process: Process,
    certificate: Option<Scratch>,
}

/// A file of this test's.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let file = format!("duopoll-{name}-{}-{number}.pem", std::process::id());
        Scratch(std::env::temp_dir().join(file))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An example of this crate's.
fn program(name: &str) -> &'static str {
    match name {
        "http" => env!("CARGO_BIN_EXE_http"),
        "grpc" => env!("CARGO_BIN_EXE_grpc"),
        "h3" => env!("CARGO_BIN_EXE_h3"),
        other => panic!("there is no {other}"),
    }
}

impl Site {
    pub fn start(name: &str, engine: &str, tls: bool) -> Site {
        let mut command = Command::new(program(name));
        // Nothing ends by force within the patience of a test.
        command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--grace", "1000"]);
        let certificate = tls.then(|| Scratch::new(name));
        if let Some(Scratch(file)) = &certificate {
            command.arg("--tls-certificate").arg(file);
        }
        Site { process: Process::start(command), certificate }
    }

    pub fn address(&self) -> SocketAddr {
        let Address::Tcp(address) = &self.process.address else { panic!("a TCP address") };
        *address
    }

    /// The server's certificate, if it has one.
    pub fn certificate(&self) -> Option<&Path> {
        self.certificate.as_ref().map(|certificate| &*certificate.0)
    }
}

/// One of the clients that `ci/clients.sh` installs.
pub fn client(name: &str) -> Command {
    let of = |name| std::env::var_os(name).map(PathBuf::from);
    let clients = of("DUOPOLL_TEST_CLIENTS").unwrap_or_else(|| {
        let cache = of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")));
        cache.expect("a home").join("duopoll-clients")
    });
    let client = clients.join(name);
    assert!(
        client.exists(),
        "{} is missing: run ci/clients.sh, which installs it",
        client.display()
    );
    Command::new(client)
}

/// A script of the tests', for Python with the modules that `ci/clients.sh` installs.
pub fn python(script: &str) -> Command {
    let mut python = client("python/bin/python");
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script));
    python
}

/// What a command prints that has nothing to complain of.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {printed}{complaint}");
    printed
}
