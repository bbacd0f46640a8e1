#!/usr/bin/env bash
# Every combination of cargo features with an engine builds without a warning; without one the build stops with one
# clear error.
set -euo pipefail
cd "$(dirname "$0")/.."

# check FEATURES WHAT...: what is checked says nothing. Flags that deny warnings would build all dependencies again.
check() {
    local features=$1 said
    shift
    echo "features: $features"
    said=$(cargo check --quiet --no-default-features --features "$features" "$@" 2>&1) && [ -z "$said" ] || {
        echo "$said" >&2
        exit 1
    }
}

readonly PROTOCOLS=tokio,futures-io,axum,tonic,hyper,metrics,quinn,rustls-ring,tracing
for features in epoll uring epoll,uring,zerocopy "epoll,$PROTOCOLS" "uring,zerocopy,$PROTOCOLS"; do
    check "$features" --lib --examples
done
# By itself, without what the tests and examples bring along.
for feature in tokio futures-io hyper axum metrics tonic tracing quinn rustls rustls-ring rustls-aws-lc-rs hyper,rustls; do
    check "epoll,$feature" --lib
done

# What nobody has asked for is not built.
tree=$(cargo tree --quiet --edges normal --prefix none --package duopoll)
for crate in tokio hyper axum metrics tonic tracing quinn rustls ring; do
    if grep --quiet "^$crate v" <<<"$tree"; then
        echo "without a feature that needs it, there is $crate" >&2
        exit 1
    fi
done

echo "features: none"
if output=$(cargo check --quiet --no-default-features --lib 2>&1); then
    echo "a build without an engine should have failed" >&2
    exit 1
fi
if [ "$(grep --count '^error: ' <<<"$output")" -gt 2 ] || ! grep --quiet 'duopoll needs an engine' <<<"$output"; then
    echo "a build without an engine should fail with one clear error, and said:" >&2
    echo "$output" >&2
    exit 1
fi
