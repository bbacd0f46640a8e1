#!/usr/bin/env bash
# No file of a crate imports from one that imports, in the end, from it; each circle is printed with its arrows.
# `ci/circles.sh [CRATE...]`: only of the crates in these directories.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 ci/circles.py "$@"
