//! An echo server: whatever arrives goes back, without being copied.
//!
//! ```text
//! cargo run --release --example echo -- --listen 127.0.0.1:7000
//! ```

#[path = "common/flags.rs"]
mod flags;

use std::io;
use std::process::ExitCode;

use duopoll::Connection;

const PROGRAM: flags::Program = flags::Program {
    about: "An echo server.",
    listen: "127.0.0.1:7000",
    tls: false,
    password: false,
};

fn main() -> ExitCode {
    flags::main(&PROGRAM, |flags| flags.builder().on_request(echo).serve(flags.listener()?))
}

async fn echo(connection: &mut Connection) -> io::Result<()> {
    let (reader, writer) = connection.split();
    writer.append(reader.buffer_mut());
    writer.flush().await
}
