//! What is generated from the gRPC example's .proto file is as it would be generated now.
//!
//! `DUOPOLL_GENERATE=1 cargo test -p duopoll-web --test grpc_generated` writes it anew.

use std::fs;
use std::path::Path;

#[test]
fn what_is_checked_in_is_what_would_be_generated() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/grpc");
    let files = protox::compile(["echo.proto"], [&directory]).expect("it compiles");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("grpc_generated");
    fs::create_dir_all(&to).expect("a directory");
    let builder = tonic_prost_build::configure().build_transport(false).out_dir(&to);
    builder.compile_fds(files).expect("it is generated");
    let generated = fs::read_to_string(to.join("duopoll.echo.v1.rs")).expect("a file");
    let checked_in = directory.join("echo.rs");
    if std::env::var("DUOPOLL_GENERATE").is_ok_and(|yes| yes == "1") {
        fs::write(&checked_in, &generated).expect("written");
    }
    let checked_in = fs::read_to_string(&checked_in).expect("a file");
    assert!(checked_in == generated, "echo.rs is old: DUOPOLL_GENERATE=1 writes it");
}
