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

const ABOUT: &str = "An echo server.";
const DEFAULT_LISTEN: &str = "127.0.0.1:7000";

fn main() -> ExitCode {
    flags::main(ABOUT, DEFAULT_LISTEN, |flags| {
        flags.builder().on_request(echo).serve(flags.listener()?)
    })
}

async fn echo(connection: &mut Connection) -> io::Result<()> {
    let (reader, writer) = connection.split();
    writer.append(reader.buffer());
    writer.flush().await
}
