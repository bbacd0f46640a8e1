#!/usr/bin/env python3
"""Publishes what `compare` has measured: `docs/publish.py target/compare`.

Fills the tables of benchmarks.md in, copies the report and its plots to benchmarks/, and draws figures.svg anew. A table of
benchmarks.md that is filled in stands below a line that says what is in it:

    <!-- compare ratio: echo-64x100 echo-64x1000 | floor-epoll duopoll-epoll tokio -->

Scenarios are rows and servers columns. The figures are `ratio` (processor time, times the yardstick), `floor` (times the better
floor), `cpu` (microseconds), `p99` (microseconds), `rate` (a second), `idle` (KiB each) or `after` (MiB that are resident when all
have left). A server may have its own, as in `haproxy:cpu`. `=` behind a ratio: its interval has 1 in it. A row that was
disturbed to the end says so. A table of which nothing was measured is left as it is.

Below `<!-- bars -->` stands what was aimed at and what was reached, from bars.tsv, and how many of those on both engines.
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
BARS = re.compile(r"(<!-- bars -->\n)(?:Reached .*\n\n)?((?:\|.*\n)*)")


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
    """A figure of bars.tsv. What was measured in rounds is divided by the others' of the same round, and the median counts."""
    figure, sign, over = re.fullmatch(r"(\w+)([/@]?)(.*)", figure).groups()
    name = FIGURES[figure][0]

    def rounds(scenario, server):
        table = measured.get(scenario, {"rows": [], "summaries": []})
        for row, summary in zip(table["rows"], table["summaries"]):
            if row["server"] == server:
                if name in row["samples"][0]:
                    return [sample[name] for sample in row["samples"]]
                value = summary[name]
                return [value["median"] if isinstance(value, dict) else value]
        return []

    def median(figures):
        return [statistics.median(figures)] if figures else []

    mine = rounds(scenario, server)
    if sign == "@":
        # A round of one scenario has nothing to do with one of another.
        mine, others = median(mine), [median(rounds(over, server))]
    else:
        others = [rounds(scenario, one) for one in over.split(",")]
    others = [one for one in others if one]
    if not mine or (over and not others):
        return None
    best = max if figure == "rate" else min
    return statistics.median(own / best(beside, default=1) for own, *beside in zip(mine, *others))


def bars(measured, old):
    """The table of bars; a line of which nothing was measured is left as it is."""
    old = {" | ".join(line.split(" | ")[:2]): line for line in old.splitlines()}
    lines = ["| | what | bar | epoll | io_uring | missed by | why, or what was tried |", "|---|---|---:|---:|---:|---:|---|"]
    for line in (HERE / "bars.tsv").read_text().splitlines():
        if line.startswith("#"):
            continue
        scenario, figure, what, bar, tried = line.split("\t")
        values = [reached(measured, scenario, figure, server) for server in ("duopoll-epoll", "duopoll-uring")]
        head = f"| {scenario} | {what}"
        if None in values:
            lines += [old[head]] if head in old else []
            continue
        sign = 1 if bar.startswith("<=") else -1
        by = max(sign * (round(value, 2) - float(bar[2:])) for value in values)
        missed = f"{by:.2f}" if by > 0.001 else "–"
        cells = [bar.replace("<=", "≤ ").replace(">=", "≥ "), *(f"{value:.2f}" for value in values), missed, tried]
        lines.append(f"{head} | " + " | ".join(cells) + " |")
    missed_by = [line.split(" | ")[5] for line in lines[2:]]
    return f"Reached on both engines: {missed_by.count('–')} of {len(missed_by)}.\n\n" + "\n".join(lines) + "\n"


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
    text = BARS.sub(lambda match: match[1] + bars(measured, match[2]), text)
    page.write_text(text)
    report = (results / "compare.md").read_text().split("\n", 1)[1]
    # Nobody else has this build of the kernel.
    report = re.sub(r"^(\| kernel \| [\d.]+)\S*", r"\1", report, flags=re.MULTILINE)
    # A run in sections knows its last command only.
    report = re.sub(r"^`compare.* --resume.*`, ([\d.]+ minutes)\.$", r"Measured section by section, in \1.", report, flags=re.MULTILINE)
    head = "# All tables of one full run\n\nSee [the benchmarks](../benchmarks.md) for what they mean.\n"
    (HERE / "benchmarks/tables.md").write_text(head + report)
    shutil.rmtree(HERE / "benchmarks/svg")
    shutil.copytree(results / "svg", HERE / "benchmarks/svg")
    subprocess.run([HERE / "figures.py"], check=True)


main(pathlib.Path(sys.argv[1]))
