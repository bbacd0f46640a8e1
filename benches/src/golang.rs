//! The Go servers: built from the module in `go/` with the Go tool chain, if there is one.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;
use crate::servers::Options;
use crate::udp;
use crate::web;
use crate::web::shape::App;

/// Builds the module and returns the executable, or says why there is none.
pub fn build() -> Result<PathBuf, String> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
    let executable = module.join("duopoll-peers");
    if !process::have("go") {
        return Err("`go` is not installed: the Go servers are left out".into());
    }
    let output = Command::new("go")
        .args(["build", "-o"])
        .arg(&executable)
        .arg(".")
        .current_dir(&module)
        .output()
        .map_err(|error| format!("go build: {error}"))?;
    if output.status.success() {
        return Ok(executable);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("go build failed, the Go servers are left out: {}", complaint.trim()))
}

/// The command that serves with one of the module's libraries.
pub fn command(executable: &Path, name: &str, options: &Options) -> Command {
    let mut command = Command::new(executable);
    command
        .arg(name)
        .arg(options.listen.to_string())
        .arg(options.echo().buffer_bytes.to_string())
        .arg(if options.framed { "framed" } else { "bytes" })
        // One core: more would only add scheduling.
        .env("GOMAXPROCS", "1");
    command
}

/// The command that serves HTTP or gRPC with the standard library or grpc-go.
pub fn web(executable: &Path, options: &web::Options) -> Command {
    let mut command = Command::new(executable);
    command
        .arg(if options.app == App::Grpc { "grpc" } else { "http" })
        .arg(options.listen.to_string())
        .args(&options.tls)
        .env("GOMAXPROCS", options.threads.to_string());
    command
}

/// The command that serves datagrams with the standard library.
pub fn udp(executable: &Path, options: &udp::Options) -> Command {
    let mut command = Command::new(executable);
    command
        .args(["udp", &options.listen.to_string(), options.ask.name()])
        .arg(options.bytes.to_string())
        .env("GOMAXPROCS", "1");
    command
}
