#!/usr/bin/env python3
"""Publishes what `compare` has measured: `docs/publish.py target/compare`.

Fills the tables of benchmarks.md in, copies the report and its plots to benchmarks/, and draws figures.svg anew. A table of
benchmarks.md that is filled in stands below a line that says what is in it:

    <!-- compare ratio: echo-64x100 echo-64x1000 | floor-epoll duopoll-epoll tokio -->

Scenarios are rows and servers columns. The figures are `ratio` (processor time, times the yardstick), `floor` (times the better
floor), `cpu` (microseconds), `p99` (microseconds), `rate` (a second), `idle` (KiB each) or `after` (MiB that are resident when all
have left). A server may have its own, as in `haproxy:cpu`. `=` behind a ratio: no difference from 1 was seen. A row that was
disturbed to the end says so. A table of which nothing was measured is left as it is.

Below `<!-- bars -->` stands what was aimed at and what was reached, from bars.tsv.
"""
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
MARK = re.compile(r"<!-- compare (?P<figure>\w+): (?P<rows>[^|]+) \| (?P<servers>[^|]+) -->\n(?:\|.*\n)*")
BARS = re.compile(r"(<!-- bars -->\n)((?:\|.*\n)*)")


def ratio(figure):
    if figure["median"] is None:
        return "–"
    low, high = figure["low"], figure["high"]
    # A single round has no interval.
    same = low is not None and low <= 1 <= high and low < high
    return f"{figure['median']:.2f}" + (" =" if same else "")


def plain(digits):
    return lambda figure: "–" if figure is None else f"{figure:.{digits}f}"


# What compare calls it, how it is shown, and what its column has behind the server's name if the others have another.
FIGURES = {
    "ratio": ("to_yardstick", ratio, ", ×"),
    "floor": ("to_floor", ratio, ", × the better floor"),
    "cpu": ("cpu_us", lambda figure: "–" if figure is None else f"{figure:.3g}", ", µs"),
    "p99": ("p99_us", plain(0), ", p99 in µs"),
    "rate": ("rate", plain(0), ", 1/s"),
    "idle": ("rss_idle_kib_each", plain(2), ", KiB"),
    "after": ("rss_settled_kib", lambda figure: "–" if figure is None else f"{figure / 1024:.0f}", ", MiB after"),
}


def table(measured, figure, rows, columns):
    columns = [column.split(":") for column in columns]
    columns = [(server, *(FIGURES[own[0]] if own else (*FIGURES[figure][:2], ""))) for server, *own in columns]
    heads = [server + behind for server, _, _, behind in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row in rows:
        if row not in measured:
            sys.exit(f"{row} was not measured")
        scenario = measured[row]
        of = {one["server"]: summary for one, summary in zip(scenario["rows"], scenario["summaries"])}
        cells = [show(of[server][name]) if server in of else "–" for server, name, show, _ in columns]
        lines.append(f"| {row}{' (disturbed)' if scenario['disturbed'] else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def reached(measured, scenario, figure, server):
    """A figure of bars.tsv: `p99/tokio` is divided by that of tokio, `rate@idle-0` by the server's own in another scenario. What was
    measured in one round is divided by that of the same round, and the median of the rounds counts."""
    figure, _, over = figure.partition("/")
    figure, _, other = figure.partition("@")
    name = FIGURES[figure][0]

    def row(scenario, server):
        found = measured.get(scenario, {"rows": [], "summaries": []})
        pairs = zip(found["rows"], found["summaries"])
        return next(((one["samples"], summary) for one, summary in pairs if one["server"] == server), ([], {}))

    def value(scenario, server):
        found = row(scenario, server)[1].get(name)
        return found["median"] if isinstance(found, dict) else found

    mine, best = value(scenario, server), max if figure == "rate" else min
    if not over:
        beside = value(other, server) if other else 1
        return mine / beside if mine and beside else None
    rounds = [row(scenario, one)[0] for one in (server, *over.split(","))]
    rounds = [samples for samples in rounds if samples and samples[0].get(name) is not None]
    if len(rounds) > 1 and rounds[0] is row(scenario, server)[0]:
        return statistics.median(own[name] / best(one[name] for one in others) for own, *others in zip(*rounds))
    beside = [one for one in (value(scenario, one) for one in over.split(",")) if one]
    return mine / best(beside) if mine and beside else None


def bars(measured, old):
    """The table of bars; a line of which nothing was measured is left as it is."""
    old = {tuple(line.split(" | ")[:2]): line for line in old.splitlines()}
    lines = ["| | what | bar | epoll | io_uring | missed by | why, or what was tried |", "|---|---|---:|---:|---:|---:|---|"]
    for line in (HERE / "bars.tsv").read_text().splitlines():
        if line.startswith("#"):
            continue
        scenario, figure, what, bar, tried = line.split("\t")
        values = [reached(measured, scenario, figure, server) for server in ("duopoll-epoll", "duopoll-uring")]
        head = f"| {scenario} | {what}"
        if None in values:
            lines += [old[key] for key in [tuple(head.split(" | "))] if key in old]
            continue
        sign = 1 if bar.startswith("<=") else -1
        by = max(sign * (round(value, 2) - float(bar[2:])) for value in values)
        missed = f"{by:.2f}" if by > 0.001 else "–"
        cells = [bar.replace("<=", "≤ ").replace(">=", "≥ "), *(f"{value:.2f}" for value in values), missed, tried]
        lines.append(f"{head} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(results):
    measured = {one["scenario"]: one for one in json.loads((results / "compare.json").read_text())["tables"]}
    page = HERE / "benchmarks.md"

    def filled(match):
        rows = match["rows"].split()
        if not any(row in measured for row in rows):
            print(f"left as it is: {' '.join(rows)}")
            return match[0]
        mark = match[0][: match[0].index("\n") + 1]
        return mark + table(measured, match["figure"], rows, match["servers"].split())

    text = MARK.sub(filled, page.read_text())
    page.write_text(BARS.sub(lambda match: match[1] + bars(measured, match[2]), text))
    report = (results / "compare.md").read_text().split("\n", 1)[1]
    # Nobody else has this build of the kernel.
    report = re.sub(r"^(\| kernel \| [\d.]+)\S*", r"\1", report, flags=re.MULTILINE)
    head = "# All tables of one full run\n\nSee [the benchmarks](../benchmarks.md) for what they mean.\n"
    (HERE / "benchmarks/tables.md").write_text(head + report)
    shutil.rmtree(HERE / "benchmarks/svg")
    shutil.copytree(results / "svg", HERE / "benchmarks/svg")
    subprocess.run([HERE / "figures.py"], check=True)


main(pathlib.Path(sys.argv[1]))
