#!/usr/bin/env bash
# Threads that share connections, under ThreadSanitizer. `ci/tsan.sh [ROUNDS]`: more rounds take longer. Where the
# standard library cannot be built with the sanitizer, for want of a nightly toolchain with its source, this says so; it
# is a failure only if $CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! rustup component add --toolchain nightly rust-src 2>/dev/null &&
    ! rustup toolchain install nightly --profile minimal --component rust-src; then
    echo "ci/tsan.sh: not run, since a nightly toolchain with rust-src cannot be had" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
fi

triple=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/tsan"
# The sanitizer knows nothing of fences and of membarrier(2): where these are used, the library does without.
export RUSTFLAGS="-Zsanitizer=thread --cfg duopoll_tsan ${RUSTFLAGS:-}"
export TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1 ${TSAN_OPTIONS:-}"
export DUOPOLL_ROUNDS=${1:-${DUOPOLL_ROUNDS:-1000}}
# Code of the standard library that is not instrumented would hide what it orders.
cargo +nightly test -Zbuild-std --target "$triple" --test threads -- --nocapture
