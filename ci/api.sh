#!/usr/bin/env bash
# The public API of each crate that is published is what docs/api says. `ci/api.sh --update` writes it anew: what it changes there is
# what users will notice.
set -euo pipefail
cd "$(dirname "$0")/.."

# Rustdoc's JSON changes its format: these two fit.
readonly NIGHTLY=nightly-2026-05-20
readonly VERSION=0.52.0
readonly CRATES=(duopoll duopoll-core duopoll-epoll duopoll-uring)

rustup toolchain list | grep --quiet "^$NIGHTLY" || rustup toolchain install "$NIGHTLY" --profile minimal
[[ "$(cargo public-api --version 2>/dev/null)" == *" $VERSION" ]] || cargo install cargo-public-api --version "$VERSION" --locked

to=docs/api
if [ "${1:-}" != --update ]; then
    to=$(mktemp --directory)
    trap 'rm -r "$to"' EXIT
fi
mkdir -p "$to"
for crate in "${CRATES[@]}"; do
    # Without what every type has from the standard library.
    cargo "+$NIGHTLY" public-api --package "$crate" --all-features -sss >"$to/$crate.txt"
done
diff --recursive --unified=0 docs/api "$to" || {
    echo "the public API is another one than docs/api says; if that is meant: ci/api.sh --update, and a line in CHANGELOG.md" >&2
    exit 1
}
