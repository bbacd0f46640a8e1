#!/usr/bin/env bash
# Formatting, clippy, circles of imports, documentation and dependencies; any warning fails.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
ci/circles.sh
cargo clippy --workspace --all-targets --all-features -- -D warnings
# The other architecture has system calls of its own.
rustup target add aarch64-unknown-linux-gnu
cargo clippy --target aarch64-unknown-linux-gnu --all-targets --all-features \
    -p duopoll-core -p duopoll-epoll -p duopoll-uring -- -D warnings
# Without the cryptography of the tests and examples, which needs a C compiler for it.
cargo clippy --target aarch64-unknown-linux-gnu --lib \
    --features zerocopy,axum,tonic,hyper,metrics,quinn,rustls,tracing -p duopoll -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

# Licences, sources and duplicate versions. Advisories need the network, so they are checked elsewhere.
command -v cargo-deny >/dev/null || cargo install cargo-deny --locked
cargo deny --all-features check bans licenses sources
