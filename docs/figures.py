#!/usr/bin/env python3
"""Draws figures.svg, for the README, from the tables of benchmarks.md: `docs/figures.py`."""
import html
import pathlib
import re

HERE = pathlib.Path(__file__).parent
OURS = ("duopoll, epoll", "duopoll, io_uring")
NAMES = {
    "duopoll-epoll": OURS[0], "duopoll-uring": OURS[1],
    "tokio-mt": "tokio, multi-thread", "go": "Go", "haproxy": "HAProxy",
}
# Title, row of a table, what its figures are times of, and columns that are left out: loops written by hand.
PANELS = [
    ("HTTP/1.1, 64 connections", "http-hello-64", "tokio (hyper)", ()),
    ("gRPC, 16 connections of 16 streams", "grpc-16x16", "tokio (tonic)", ()),
    ("TCP proxy, 64 B on 64 connections", "proxy-64x64", "HAProxy", ("floor-copy", "floor-splice")),
    ("TCP proxy, 64 KiB on 16 connections", "proxy-64kx16", "HAProxy", ("floor-copy", "floor-splice")),
]
LEFT, BAR, ROW, WIDTH = 150, 230, 22, 470


def tables(text):
    """Each table that was filled in, as its head and its rows, all lists of cells."""
    for table in re.findall(r"^<!-- compare .*-->\n((?:\|.*\n)+)", text, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        yield head, rows


def figures(row, without):
    """The first row of that name: pairs of a name and a figure."""
    for head, rows in tables((HERE / "benchmarks.md").read_text()):
        for cells in rows:
            if cells[0] == row:
                # `=` says that the interval has 1 in it.
                cells = [cell.removesuffix(" =") for cell in cells]
                # The yardstick's figure is its time, of which the others are multiples.
                pairs = [(name.removesuffix(", µs"), "1.00" if name.endswith(", µs") else cell)
                         for name, cell in zip(head[1:], cells[1:])]
                pairs = [(NAMES.get(name, name), cell) for name, cell in pairs]
                return [(name, cell) for name, cell in pairs if cell != "–" and name not in without]
    raise SystemExit(f"benchmarks.md has no row {row}")


def main():
    out, places = [], [(0, 0), (1, 0), (0, 1), (1, 1)]
    heights = [0, 0]
    drawn = []
    for (title, row, base, without), (column, line) in zip(PANELS, places):
        pairs = figures(row, without)
        pairs.sort(key=lambda pair: float(pair[1]))
        heights[line] = max(heights[line], 62 + ROW * len(pairs))
        drawn.append((title, base, pairs, column, line))
    for title, base, pairs, column, line in drawn:
        x, y = 20 + column * WIDTH, 44 + line * heights[0]
        scale = BAR / max(2.1, max(float(figure) for _, figure in pairs))
        out.append(f'<text x="{x}" y="{y + 14}" font-size="14" font-weight="bold">{html.escape(title)}</text>')
        out.append(f'<text x="{x}" y="{y + 32}" fill="#555">× {html.escape(base)}</text>')
        for index, (name, figure) in enumerate(pairs):
            top = y + 40 + index * ROW
            colour = "#0a8f5b" if name in OURS else "#9aa7b4"
            length = float(figure) * scale
            out.append(f'<text x="{x + LEFT - 8}" y="{top + 13}" text-anchor="end">{html.escape(name)}</text>')
            out.append(f'<rect x="{x + LEFT}" y="{top}" width="{length:.1f}" height="{ROW - 6}" fill="{colour}"/>')
            out.append(f'<text x="{x + LEFT + length + 6:.1f}" y="{top + 13}">{figure}</text>')
    height = 44 + sum(heights)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH + 20} {height}" font-family="sans-serif" font-size="12" fill="#222">'
    about = "Processor time a request: shorter is better. The server has one thread. All rows, and how they were measured: benchmarks.md."
    text = "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', f'<text x="20" y="26" font-size="13">{about}</text>', *out, "</svg>", ""])
    (HERE / "figures.svg").write_text(text)


main()
