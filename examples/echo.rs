//! An echo server: whatever arrives goes back, without being copied.
//!
//! ```text
//! cargo run --release --example echo -- --listen 127.0.0.1:7000
//! ```

#[path = "common/flags.rs"]
mod flags;

use std::io;
use std::process::ExitCode;

use duopoll::{Connection, EventLoop};

const ABOUT: &str = "An echo server.";
const DEFAULT_LISTEN: &str = "127.0.0.1:7000";

fn main() -> ExitCode {
    flags::main(ABOUT, DEFAULT_LISTEN, |flags| {
        let service =
            EventLoop::builder().engine(flags.engine).pollers(flags.pollers).on_request(echo);
        service.serve(flags.listener()?)
    })
}

async fn echo(connection: &mut Connection) -> io::Result<()> {
    let (reader, writer) = connection.split();
    writer.append(reader.buffer());
    writer.flush().await
}
