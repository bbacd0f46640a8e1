//! `compare`: the side-by-side comparison. See `compare --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    duopoll_benches::cli::main()
}
