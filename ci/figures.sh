#!/usr/bin/env bash
# Instructions of an echo, of a request by HTTP/1.1 and of a call by gRPC, on epoll, beside those in ci/figures.txt: figures that no
# other load on the machine changes. `ci/figures.sh --update` writes what it counts there. System calls and allocations are counted by
# tests/costs.rs, bytes copied by tests/copies.rs, the memory of an idle connection by tests/idle.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

# In per cent. Runs differ by half a per cent for echoes and HTTP, by up to three for gRPC, compilers by more.
readonly TOLERANCE=5

missing=
for tool in valgrind wrk h2load; do command -v "$tool" >/dev/null || missing=yes; done
if [ -n "$missing" ]; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update --quiet
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes valgrind wrk nghttp2-client
fi

out=${CARGO_TARGET_DIR:-target}/figures
cargo run --release --package duopoll-benches --no-default-features --features http --bin compare -- \
    --only echo-64x100,http-hello-64,grpc-16x16 --servers duopoll-epoll --rounds 1 --seconds 0.1 --no-trace --instructions --out "$out"
python3 - "$out/compare.json" "$TOLERANCE" "${1:-}" <<'PYTHON'
import json, pathlib, sys
report, tolerance, update = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "--update"
known = pathlib.Path("ci/figures.txt")
counted = {table["scenario"]: table["rows"][0]["instructions"] for table in json.load(open(report))["tables"]}
if update:
    known.write_text("".join(f"{name} {figure:.0f}\n" for name, figure in counted.items()))
failed = False
for line in known.read_text().splitlines():
    name, before = line.split()
    now = counted.get(name)
    off = (now / float(before) - 1) * 100 if now else float("nan")
    print(f"{name}: {now and round(now)} instructions, {before} before: {off:+.1f} %")
    failed |= not abs(off) <= tolerance
if failed:
    sys.exit(f"more than {tolerance:.0f} % off; if that is meant: ci/figures.sh --update")
PYTHON
