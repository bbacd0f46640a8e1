#!/usr/bin/env bash
# Both engines, and io_uring's self-test, under a kernel that is made to fail: calls are cut short, interrupted, put off
# and refused, at random and one after the other.
set -euo pipefail
cd "$(dirname "$0")/.."

# Flags of their own would rebuild everything, so these tests have a target directory of their own, too.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/faults"
export RUSTFLAGS="--cfg duopoll_faults ${RUSTFLAGS:-}"
cargo test -p duopoll-uring --lib faults
# One operation at a time, and each of them failing.
DUOPOLL_URING=base cargo test --test faults --test failed_sends
# Operations that go on by themselves.
cargo test --test faults -- uring_{v4,v6,unix}::a_storm
cargo test --test failed_sends --test udp_faults
