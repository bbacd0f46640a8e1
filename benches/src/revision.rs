//! The same programs of another revision, to compare this one with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A revision that is built.
#[derive(Clone, Debug)]
pub struct Revision {
    /// As git abbreviates it.
    pub name: String,
    folder: PathBuf,
}

impl Revision {
    /// Builds a revision, with the features that this program has and servers of this project need.
    ///
    /// # Errors
    /// What git, tar or cargo say, after the option and the revision.
    pub fn build(revision: &str, with_proxy: bool) -> Result<Revision, String> {
        let error = |error| format!("--against {revision}: {error}");
        Revision::unpack(revision)
            .and_then(|unpacked| {
                eprintln!("building {revision} ({})", unpacked.name);
                unpacked.build_programs(with_proxy)
            })
            .map_err(error)
    }

    /// Finds a revision, and unpacks its files.
    fn unpack(revision: &str) -> Result<Revision, String> {
        let name = output(
            Command::new("git")
                .args(["rev-parse", "--short", "--verify"])
                .arg(format!("{revision}^{{commit}}")),
        )?;
        let name = name.trim().to_owned();
        let folder = process::target_folder().join("against").join(&name);
        let source = folder.join("source");
        if !source.join("Cargo.toml").exists() {
            fs::create_dir_all(&source)
                .map_err(|error| format!("{}: {error}", source.display()))?;
            let archive = folder.join("source.tar");
            output(Command::new("git").args(["archive", "--output"]).arg(&archive).arg(&name))?;
            output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source))?;
        }
        Ok(Revision { name, folder })
    }

    fn build_programs(self, with_proxy: bool) -> Result<Revision, String> {
        self.cargo(&[
            "--package",
            "duopoll-benches",
            "--bin",
            "compare",
            "--no-default-features",
            "--features",
            &features(),
        ])?;
        if with_proxy {
            self.cargo(&["--package", "duopoll-proxy"])?;
        }
        Ok(self)
    }

    /// A program of it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("target/release").join(name)
    }

    fn cargo(&self, arguments: &[&str]) -> Result<(), String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(["build", "--release", "--target-dir"])
            .arg(self.folder.join("target"))
            .args(arguments);
        output(command.current_dir(self.folder.join("source"))).map(drop)
    }
}

/// Those of this program that its own servers need.
fn features() -> String {
    let mut features = Vec::new();
    if cfg!(feature = "http") {
        features.push("http");
    }
    if cfg!(feature = "quic") {
        features.push("quic");
    }
    features.join(",")
}

/// What a command prints; an error is what it complains of.
fn output(command: &mut Command) -> Result<String, String> {
    if command.get_current_dir().is_none() {
        command.current_dir(Path::new(ROOT));
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_revision_is_named() {
        let error = Revision::build("no-such-revision", false).unwrap_err();
        assert!(error.starts_with("--against no-such-revision: git: "), "{error}");
    }
}
