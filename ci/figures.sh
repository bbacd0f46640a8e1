#!/usr/bin/env bash
# Instructions and system calls of an echo, of a request by HTTP/1.1 and of a call by gRPC, on epoll, beside those in ci/figures.txt.
# `ci/figures.sh --update` writes what it counts there, the lowest of three passes.
#
# callgrind counts instructions, and does not see the kernel; strace counts the calls that the kernel was really asked for. What the
# library counts of itself, and allocations, are in tests/costs.rs, bytes copied in tests/copies.rs, the memory of an idle connection in
# tests/idle.rs.
#
# Other load on the machine makes both figures higher, never lower: fewer connections are ready in a turn of the poller, and those under
# strace begin with as many calls and then ask less. Up to 7 % of the instructions were seen. So what is above is counted again, up to
# three passes in all, and the lowest count of each counts. A pass takes half a minute.
set -euo pipefail
cd "$(dirname "$0")/.."

# In per cent. Runs differ by half a per cent for echoes and HTTP, by up to three for gRPC, compilers by more.
readonly TOLERANCE=5
# By how much a call of one name may be made more often, in per cent of all calls. On a quiet machine none was by more than 1, on one with
# two busy processes a core by up to 10, each with the connections' beginnings in it. One more an echo is 47.
readonly CALLS_TOLERANCE=15
readonly PASSES=3

missing=
for tool in valgrind strace wrk h2load; do command -v "$tool" >/dev/null || missing=yes; done
if [ -n "$missing" ]; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update --quiet
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes valgrind strace wrk nghttp2-client
fi

target=${CARGO_TARGET_DIR:-target}
cargo build --release --package duopoll-benches --no-default-features --features http --bin compare
python3 - "$target" "$TOLERANCE" "$CALLS_TOLERANCE" "$PASSES" "${1:-}" <<'PYTHON'
import json, pathlib, subprocess, sys

target, tolerance, calls_tolerance, passes = pathlib.Path(sys.argv[1]), *map(float, sys.argv[2:5])
update = sys.argv[5] == "--update"
known = pathlib.Path("ci/figures.txt")
SCENARIOS = ["echo-64x100", "http-hello-64", "grpc-16x16"]


def count(names):
    """Instructions and calls by name, of each scenario. What could not be counted is missing."""
    out = target / "figures"
    subprocess.run(
        [target / "release/compare", "--only", ",".join(names), "--servers", "duopoll-epoll", "--rounds", "1"]
        + ["--seconds", "0.1", "--instructions", "--out", out],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    rows = {table["scenario"]: table["rows"][0] for table in json.load(open(out / "compare.json"))["tables"]}
    return {
        name: {**dict((row["calls"] or {}).get("by_name", [])), "instructions": row["instructions"]}
        for name, row in rows.items()
        if row["instructions"] and row["calls"]
    }


def lowest(one, other):
    """Of two counts of a scenario. A call that was not made in one of them is made 0 times."""
    return {name: min(one.get(name, 0), other.get(name, 0)) for name in one} if one else other


def read(line):
    name, instructions, *calls = line.split()
    calls = (call.split("=") for call in calls)
    return name, {"instructions": float(instructions), **{call: float(times) for call, times in calls}}


def written(name, figures):
    calls = sorted(((times, call) for call, times in figures.items() if call != "instructions"), reverse=True)
    return " ".join([name, f"{figures['instructions']:.0f}", *(f"{call}={times:.2f}" for times, call in calls)]) + "\n"


def complaints(before, now):
    """What is off: (what, by how much in per cent, whether counting again may help)."""
    if not now:
        return [("nothing was counted", 0, True)]
    off = (now["instructions"] / before["instructions"] - 1) * 100
    found = [("instructions", off, off > 0)] if abs(off) > tolerance else []
    calls = sum(times for call, times in before.items() if call != "instructions")
    for call in now.keys() - {"instructions"}:
        more = (now[call] - before.get(call, 0)) / calls * 100
        found += [(f"calls of {call}, of all calls", more, True)] if more > calls_tolerance else []
    return found


before = {} if update else dict(map(read, known.read_text().splitlines()))
now, again = {}, SCENARIOS
for _ in range(int(passes)):
    counted = count(again)
    now.update({name: lowest(now.get(name), counted[name]) for name in again if name in counted})
    if not update:
        again = [name for name in again if any(higher for _, _, higher in complaints(before[name], now.get(name)))]
    if not again:
        break

if update:
    known.write_text("".join(written(name, now[name]) for name in SCENARIOS))
    before = now
failed = False
for name in SCENARIOS:
    print("now:   ", written(name, now[name]) if name in now else name + "\n", end="")
    print("before:", written(name, before[name]), end="")
    for what, off, _ in complaints(before[name], now.get(name)):
        failed = True
        print(f"    {what}: {off:+.1f} %")
if failed:
    sys.exit(
        f"more than {tolerance:.0f} % of the instructions off, or {calls_tolerance:.0f} % of the calls more; "
        "if that is meant: ci/figures.sh --update"
    )
PYTHON
