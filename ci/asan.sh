#!/usr/bin/env bash
# The tests of the core under AddressSanitizer: as they are, then with each block in an allocation of its own, which
# the sanitizer watches one by one.
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTC_BOOTSTRAP=1
export LSAN_OPTIONS="suppressions=$PWD/ci/asan.supp"
triple=$(rustc -vV | sed -n 's/^host: //p')
base=${CARGO_TARGET_DIR:-target}
for blocks in "" "--cfg fuzzing"; do
    export RUSTFLAGS="-Zsanitizer=address $blocks"
    export CARGO_TARGET_DIR="$base/asan${blocks:+-blocks}"
    # How much memory is resident is the sanitizer's affair here.
    cargo test --target "$triple" -p duopoll-core --lib --tests -- --skip memory_comes_back_down
done
