#!/usr/bin/env bash
# The published crates as they would be published: what is in their packages builds, and their documentation as docs.rs makes it.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly CRATES=(duopoll-core duopoll-epoll duopoll-uring duopoll)

# Cargo keeps what it has unpacked and built by name and version, and these change within one.
target=${CARGO_TARGET_DIR:-target}/publish
rm -rf "${CARGO_HOME:-$HOME/.cargo}"/registry/{src,cache}/-*/duopoll* "$target"/debug/.fingerprint/duopoll*
# Not what is not committed; tests are not in the packages, which cargo says of each.
CARGO_TARGET_DIR=$target cargo publish --dry-run "${CRATES[@]/#/--package=}" 2>&1 | grep --invert-match "^warning: ignoring test"

for crate in "${CRATES[@]}"; do
    listed=$(cargo package --package "$crate" --list)
    for file in README.md LICENSE-MIT LICENSE-APACHE src/lib.rs; do
        grep --quiet --line-regexp "$file" <<<"$listed" || {
            echo "the package of $crate has no $file" >&2
            exit 1
        }
    done
done

# docs.rs has a nightly toolchain.
rustup toolchain list | grep --quiet ^nightly || rustup toolchain install nightly --profile minimal
RUSTDOCFLAGS="--cfg docsrs -D warnings" cargo +nightly doc --no-deps --all-features "${CRATES[@]/#/--package=}"
