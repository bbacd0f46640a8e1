#!/usr/bin/env bash
# The model test of LinkBuffer, with as many cases as make a proof of sorts.
set -euo pipefail
cd "$(dirname "$0")/.."

PROPTEST_CASES=${PROPTEST_CASES:-100000} cargo test --release -p duopoll-core --test model
