#!/usr/bin/env bash
# All tests. Installs the clients that they drive the examples with, and `ip`, where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v redis-benchmark >/dev/null || ! command -v ip >/dev/null; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update --quiet
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes redis-tools iproute2
fi
# Thousands of connections in one process.
ulimit -n "$(ulimit -Hn)"

cargo test --workspace --features duopoll/zerocopy
