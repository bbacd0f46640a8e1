//! Random sequences of all operations, against plain byte queues.
//!
//! `PROPTEST_CASES` says how many; the default is quick in a debug build.

#[path = "support/world.rs"]
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::Config;
use world::{Op, World};

const CASES: u32 = 2_000;
const OPS_MAX: usize = if cfg!(miri) { 25 } else { 60 };

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    Config { cases: cases.unwrap_or(CASES), failure_persistence: None, ..Config::default() }
}

fn op() -> impl Strategy<Value = Op> {
    any::<(u8, u16, u16)>().prop_map(|(kind, a, b)| Op::decode(kind, a, b))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_link_buffer_is_a_byte_queue(small: bool, ops in vec(op(), 0..OPS_MAX)) {
        let mut world = World::new(small);
        for op in ops {
            world.apply(op);
        }
        world.finish();
    }
}
