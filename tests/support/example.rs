//! The examples, for tests that run them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The example of this name, built as it is now: a single test target comes without, or with an old one.
/// Where there is no cargo, `DUOPOLL_TEST_EXAMPLES` names the directory they are in.
pub(crate) fn example(name: &str) -> PathBuf {
    // A crate of its own, whose program lies with the others' directory, or in it.
    let is_crate = name == "redis";
    if let Some(directory) = std::env::var_os("DUOPOLL_TEST_EXAMPLES") {
        let directory = PathBuf::from(directory);
        let beside = directory.join("..").join(name);
        return if is_crate && beside.is_file() { beside } else { directory.join(name) };
    }
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let test = std::env::current_exe().expect("the test has a path");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps");
    let directory = if is_crate { "" } else { "examples" };
    let path = profile.join(directory).join(name);
    if built.iter().any(|built| built == name) {
        return path;
    }
    let mut build = Command::new(env!("CARGO"));
    let what = if is_crate { ["--package", "duopoll-redis"] } else { ["--example", name] };
    build.args(["build", "--quiet"]).args(what).current_dir(env!("CARGO_MANIFEST_DIR"));
    build.arg("--target-dir").arg(profile.parent().expect("target/PROFILE"));
    // As this was built, so that nothing is built twice.
    let features = [
        ("zerocopy", cfg!(feature = "zerocopy")),
        ("tokio", cfg!(feature = "tokio")),
        ("futures-io", cfg!(feature = "futures-io")),
        ("hyper", cfg!(feature = "hyper")),
        ("axum", cfg!(feature = "axum")),
        ("tonic", cfg!(feature = "tonic")),
        ("rustls", cfg!(feature = "rustls")),
        ("rustls-ring", cfg!(feature = "rustls-ring")),
        ("rustls-aws-lc-rs", cfg!(feature = "rustls-aws-lc-rs")),
    ];
    for (feature, _) in features.iter().filter(|(_, has)| *has && !is_crate) {
        build.args(["--features", feature]);
    }
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "{name} builds");
    built.push(name.to_owned());
    path
}
