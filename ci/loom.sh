#!/usr/bin/env bash
# Loom models of all that threads share: block counts, pools, release on another thread, the mailbox's wake-ups, waits of connections and senders.
set -euo pipefail
cd "$(dirname "$0")/.."

# Flags of their own would rebuild everything, so the models have a target directory of their own, too.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom"
export RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}"
cargo test -p duopoll-core --release --lib loom
