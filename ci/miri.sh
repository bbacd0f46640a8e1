#!/usr/bin/env bash
# The core under Miri, with strict provenance, on this machine's architecture and on one that is big-endian: its unit tests
# of the modules below, and the tests of LinkBuffer. Where a nightly toolchain with Miri cannot be had, this says so; it is
# a failure only if $CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."

# Memory comes from the allocator here; what else makes system calls cannot run.
readonly MODULES=(block_cache:: buffer:: connection:: memory:: timer:: token:: token_table::)
readonly TESTS=(bad_input linkbuffer model)
readonly BIG_ENDIAN=s390x-unknown-linux-gnu

if ! rustup component add --toolchain nightly miri rust-src 2>/dev/null &&
    ! rustup toolchain install nightly --profile minimal --component miri --component rust-src; then
    echo "ci/miri.sh: not run, since a nightly toolchain with Miri cannot be had" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
fi

base=${CARGO_TARGET_DIR:-target}
export MIRIFLAGS="-Zmiri-strict-provenance -Zmiri-env-forward=PROPTEST_CASES ${MIRIFLAGS:-}"
export PROPTEST_CASES=${PROPTEST_CASES:-4}

# watch TRIPLE: the tests on that architecture.
watch() {
    export CARGO_TARGET_DIR="$base/miri/$1"
    cargo +nightly miri setup --quiet --target "$1"
    cargo +nightly miri test --target "$1" -p duopoll-core --lib -- "${MODULES[@]}"
    cargo +nightly miri test --target "$1" -p duopoll-core "${TESTS[@]/#/--test=}"
}

# Miri has one thread, so both run at once.
mkdir -p "$base/miri"
watch "$BIG_ENDIAN" >"$base/miri/big-endian.log" 2>&1 &
failed=0
watch "$(rustc -vV | sed -n 's/^host: //p')" || failed=1
wait $! || failed=1
cat "$base/miri/big-endian.log"
exit "$failed"
