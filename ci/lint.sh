#!/usr/bin/env bash
# Formatting, clippy, documentation and dependencies; any warning fails.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
cargo clippy --workspace --all-targets --all-features -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

# Licences, sources and duplicate versions. Advisories need the network, so they are checked elsewhere.
command -v cargo-deny >/dev/null || cargo install cargo-deny --locked
cargo deny --all-features check bans licenses sources
