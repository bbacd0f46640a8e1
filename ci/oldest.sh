#!/usr/bin/env bash
# The published crates with the Rust that their manifests name, with what is locked; and with the oldest dependencies that they say will do.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly CRATES=(duopoll-core duopoll-epoll duopoll-uring duopoll)
# Without the cryptography that needs a C compiler's tools.
readonly FEATURES=axum,futures-io,hyper,metrics,quinn,rustls-ring,tokio,tonic,tracing,zerocopy
rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
readonly rust

rustup toolchain list | grep --quiet "^$rust" || rustup toolchain install "$rust" --profile minimal
cargo "+$rust" check --lib -p duopoll --features "$FEATURES"

rustup toolchain list | grep --quiet ^nightly || rustup toolchain install nightly --profile minimal
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git archive HEAD | tar -x -C "$work"
cd "$work"
# The others are not published, and ask for newer ones.
sed -i 's/^members = .*/members = ["core", "engine-epoll", "engine-uring"]/' Cargo.toml
# Those that these crates name; what these ask for in turn is not theirs to say.
cargo +nightly update -Z direct-minimal-versions --quiet
CARGO_TARGET_DIR=$work/target cargo check --lib "${CRATES[@]/#/--package=}" --features duopoll/"${FEATURES//,/,duopoll/}"
