//! What io_uring can do on this kernel, as a table.
//!
//! ```text
//! cargo run --release --example probe
//! ```

fn main() {
    println!("{}", duopoll::uring::probe(duopoll::uring::Features::ALL));
}
