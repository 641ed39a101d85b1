"""Draws the plots of the documentation from the tables of its pages: `python docs/plots.py`.

A plot has the digest of its tables in its metadata, so that a test can tell when a table has
changed and the plot has not.
"""

import hashlib
import pathlib
import re
from typing import NamedTuple

DOCS = pathlib.Path(__file__).parent
TFPS, OTHERS = "#00796b", "#9e9e9e"


class Plot(NamedTuple):
    """What a plot is made from.

    Attributes:
      page: the file of the tables.
      headings: of the sections whose first tables are drawn, a panel for each.
    """

    page: str
    headings: tuple[str, ...]


PLOTS = {
    "wire": Plot("benchmarks.md", ("1 Gb/s", "100 Mb/s")),
    "dispatch": Plot("benchmarks.md", ("Scheduling functions",)),
    "allreduce": Plot("allreduce.md", ("Dense network", "Table of 2 million rows")),
    "quality": Plot("compression.md", ("What they cost in quality",)),
}


def tables(name: str) -> list[list[list[str]]]:
    """The tables of a plot: rows of cells, without the header."""
    page = (DOCS / PLOTS[name].page).read_text()
    found = []
    for heading in PLOTS[name].headings:
        section = re.split(rf"^#+ {re.escape(heading)}$", page, flags=re.M)[1]
        lines = re.search(r"(?:^\|.*\n)+", section, re.M)[0].splitlines()
        found.append([[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]])
    return found


def digest(name: str) -> str:
    """Of the tables of a plot."""
    return hashlib.sha256(repr(tables(name)).encode()).hexdigest()


def first_number(cell: str) -> float:
    return float(re.search(r"[\d.,]+", cell)[0].replace(",", ""))


def draw_wire(pyplot, panels):
    """Bars of step times, a panel for each link."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 6.2), layout="constrained")
    for axis, title, rows in zip(axes, PLOTS["wire"].headings, panels, strict=True):
        rows = [r for r in rows if "no computing" not in r[0]]
        rows.sort(key=lambda r: -first_number(r[1]))
        steps = [first_number(r[1]) for r in rows]
        colors = [TFPS if r[0].startswith("tfps") else OTHERS for r in rows]
        bars = axis.barh([r[0].removeprefix("tfps ") for r in rows], steps, color=colors)
        axis.bar_label(bars, [f"{s:,.0f}" for s in steps], padding=2, fontsize=7)
        axis.set(
            xscale="log",
            xlim=(50, 1.6 * max(steps)),
            title=title,
            xlabel="ms a step (tfps in green)",
        )
        axis.set_xticks([100, 200, 500] if max(steps) < 1000 else [100, 1000], minor=False)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.minorticks_off()
        axis.margins(x=0.1, y=0.01)
        axis.tick_params(axis="y", labelsize=7)
    return figure


def draw_dispatch(pyplot, panels):
    """Bars of the time of a function, for each case on 2 workers."""
    rows = [r for r in panels[0] if r[1] == "2"]
    figure, axis = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    series = [(2, "tfps", TFPS), (3, "tfps, two in flight", "#80cbc4"), (4, "stock", OTHERS)]
    for i, (column, label, color) in enumerate(series):
        places = [x + 0.27 * (i - 1) for x in range(len(rows))]
        bars = axis.bar(places, [first_number(r[column]) for r in rows], 0.25, color=color)
        axis.bar_label(bars, fmt="{:,.0f}", fontsize=7)
        bars.set_label(label)
    axis.set_xticks(range(len(rows)), [r[0] for r in rows])
    axis.set(ylabel="µs a function, 2 workers")
    axis.legend(frameon=False)
    return figure


def draw_allreduce(pyplot, panels):
    """Bars of step times, a panel for each network and a group for each system."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    places = ("100 Mb/s", "1 Gb/s", "no limit", "1 Gb/s, one worker slow")
    shades = ("#004d40", "#00796b", "#80cbc4", "#f9a825")
    for axis, title, rows in zip(axes, PLOTS["allreduce"].headings, panels, strict=True):
        for i, shade in enumerate(shades):
            measured = [(y, row[i + 1]) for y, row in enumerate(rows) if row[i + 1] != "—"]
            ys = [y + 0.2 * (i - 1.5) for y, _ in measured]
            steps = [first_number(cell) for _, cell in measured]
            bars = axis.barh(ys, steps, 0.19, color=shade)
            axis.bar_label(bars, [f"{s:,.0f}" for s in steps], padding=2, fontsize=6)
        axis.set(xscale="log", title=title, xlabel="ms a step")
        axis.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=7)
        axis.set_xticks([20, 50, 100, 200, 500, 1000, 2000], minor=False)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.minorticks_off()
        axis.margins(x=0.1)
    axes[0].invert_yaxis()  # In the order of the table.
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=shade) for shade in shades]
    figure.legend(handles, places, frameon=False, fontsize=7, ncols=4, loc="outside lower center")
    return figure


def draw_quality(pyplot, panels):
    """What a codec of gradients sends, and what the model is worth."""
    rows = [r for r in panels[0] if " down" not in r[0]]
    figure, axis = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    sent, worth = [first_number(r[4]) for r in rows], [first_number(r[1]) for r in rows]
    axis.scatter(sent, worth, color=TFPS)
    for row, x, y in zip(rows, sent, worth, strict=True):
        axis.annotate(row[0].split(",")[0], (x, y), (4, 4), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", xlabel="MB pushed in a step", ylabel="bits per byte")
    axis.set_xticks([0.6, 1, 2, 3.4], ["0.6", "1", "2", "3.4"])
    axis.minorticks_off()
    axis.margins(x=0.15, y=0.15)
    return figure


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name in PLOTS:
        figure = globals()[f"draw_{name}"](pyplot, tables(name))
        figure.savefig(DOCS / f"{name}.png", dpi=110, metadata={"Source": digest(name)})


if __name__ == "__main__":
    main()
