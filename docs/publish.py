#!/usr/bin/env python3
"""Publishes what `compare` has measured: `docs/publish.py target/compare`.

Fills the tables of benchmarks.md in, copies the report and its plots to benchmarks/, and draws figures.svg anew. A table of
benchmarks.md that is filled in stands below a line that says what is in it:

    <!-- compare ratio: echo-64x100 echo-64x1000 | floor-epoll duopoll-epoll tokio -->

Scenarios are rows and servers columns. The figures are `ratio` (processor time, times the yardstick), `floor` (times the better
floor), `cpu` (microseconds), `p99` (microseconds), `rate` (a second), `idle` (KiB each) or `after` (MiB that are resident when all
have left). A server may have its own, as in `haproxy:cpu`. `=` behind a ratio: no difference from 1 was seen. A row that was
disturbed to the end says so. A table of which nothing was measured is left as it is.
"""
import json
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
MARK = re.compile(r"<!-- compare (?P<figure>\w+): (?P<rows>[^|]+) \| (?P<servers>[^|]+) -->\n(?:\|.*\n)*")


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

    page.write_text(MARK.sub(filled, page.read_text()))
    report = (results / "compare.md").read_text().split("\n", 1)[1]
    # Nobody else has this build of the kernel.
    report = re.sub(r"^(\| kernel \| [\d.]+)\S*", r"\1", report, flags=re.MULTILINE)
    head = "# All tables of one full run\n\nSee [the benchmarks](../benchmarks.md) for what they mean.\n"
    (HERE / "benchmarks/tables.md").write_text(head + report)
    shutil.rmtree(HERE / "benchmarks/svg")
    shutil.copytree(results / "svg", HERE / "benchmarks/svg")
    subprocess.run([HERE / "figures.py"], check=True)


main(pathlib.Path(sys.argv[1]))
