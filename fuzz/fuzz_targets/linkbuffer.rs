//! Bytes as a sequence of operations on LinkBuffers, checked against plain byte queues.
//!
//! One byte says how small the blocks are, then every five bytes are an operation and its two sizes.

#![no_main]

#[path = "../../core/tests/support/world.rs"]
mod world;

use libfuzzer_sys::fuzz_target;
use world::{Op, World};

fuzz_target!(|data: &[u8]| {
    let Some((small, ops)) = data.split_first() else { return };
    let mut world = World::new(small % 2 == 0);
    for op in ops.chunks_exact(Op::ENCODED_BYTES) {
        let a = u16::from_be_bytes([op[1], op[2]]);
        let b = u16::from_be_bytes([op[3], op[4]]);
        world.apply(Op::decode(op[0], a, b));
    }
    world.finish();
});
