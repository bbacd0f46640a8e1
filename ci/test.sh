#!/usr/bin/env bash
# All tests, with all features of duopoll's. Then with default features what sends, and in release mode what depends on time and on the
# order of things. Installs the clients that they drive the examples with, and `ip`, where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=
for tool in redis-benchmark redis-server ip curl openssl wrk h2load dig kdig dnsperf; do command -v "$tool" >/dev/null || missing=yes; done
if [ -n "$missing" ]; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update --quiet
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes redis-tools redis-server iproute2 curl openssl wrk nghttp2-client \
        bind9-dnsutils knot-dnsutils dnsperf
fi
ci/clients.sh
# Thousands of connections in one process.
ulimit -n "$(ulimit -Hn)"

# The feature `zerocopy` changes how bytes are sent, and when their memory is free again. Without it, which is what most
# users have, the others are the same.
readonly SENDING=(backpressure costs differential echo ended_connections ends endurance lifecycle reading reuse teardown threads timeouts)
# A release build is faster by several times, and overflows wrap.
readonly TIMING=(backpressure dial ended_connections ends lifecycle teardown threads timeouts)

# All features but the libraries that the benchmarks compare with, which take ten minutes to build; clippy sees those, and
# `cargo test -p duopoll-benches` runs them.
readonly FEATURES=(duopoll/{epoll,uring,zerocopy,axum,tonic,hyper,metrics,quinn,rustls-ring,tracing} duopoll-benches/{http,zerocopy} duopoll-web/rustls)
# They are built with them.
DUOPOLL_TEST_EXAMPLES=$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug/examples \
    cargo test --no-fail-fast --workspace --no-default-features "${FEATURES[@]/#/--features=}"
# Where the kernel has none of them, they are refused.
DUOPOLL_URING=base cargo test -p duopoll --features zerocopy --test zerocopy
cargo test -p duopoll-core --lib --test simulation
cargo test -p duopoll "${SENDING[@]/#/--test=}"
cargo test -p duopoll --release --features zerocopy "${TIMING[@]/#/--test=}"
