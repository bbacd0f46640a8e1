#!/usr/bin/env bash
# The tests of the core, and those that take io_uring down with thousands of operations in flight, under
# AddressSanitizer: as they are, then with each block in an allocation of its own, which the sanitizer watches one by one.
set -euo pipefail
cd "$(dirname "$0")/.."

# Thousands of connections in one process.
ulimit -n "$(ulimit -Hn)"

export RUSTC_BOOTSTRAP=1
export LSAN_OPTIONS="suppressions=$PWD/ci/asan.supp"
triple=$(rustc -vV | sed -n 's/^host: //p')
base=${CARGO_TARGET_DIR:-target}
for blocks in "" "--cfg fuzzing"; do
    export RUSTFLAGS="-Zsanitizer=address $blocks"
    export CARGO_TARGET_DIR="$base/asan${blocks:+-blocks}"
    # How much memory is resident is the sanitizer's affair here.
    skip=(--skip memory_comes_back_down)
    # The simulation, which takes a minute, runs where more is seen.
    [ -n "$blocks" ] || skip+=(--skip every_seed_keeps_the_invariants)
    cargo test --target "$triple" -p duopoll-core --lib --tests -- "${skip[@]}"
    cargo test --target "$triple" -p duopoll-uring --lib ten_thousand_operations
done
# With blocks that are allocations of their own it sees more, and once is enough.
cargo test --target "$triple" --test teardown
