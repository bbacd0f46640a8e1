#!/usr/bin/env bash
# Fuzzes LinkBuffer under AddressSanitizer for so many seconds: `ci/fuzz.sh 1800`; 60 if it is not said. More
# arguments go to libFuzzer. Needs neither cargo-fuzz nor a nightly toolchain.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-60}
shift || true
target=linkbuffer

# What cargo-fuzz passes. `--cfg fuzzing` gives each block an allocation of its own, so that the sanitizer sees a use
# after free.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 -Cforce-frame-pointers"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}"
triple=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --target "$triple" --bin "$target"

mkdir -p "corpus/$target" "artifacts/$target"
"$CARGO_TARGET_DIR/$triple/release/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" \
    -max_total_time="$seconds" -max_len=1000 -len_control=20 -timeout=25 -rss_limit_mb=4096 -print_final_stats=1 "$@"
