"""A plan as text, and as a plot."""

import json
import os
from collections.abc import Sequence

from tfps import errors
from tfps.planning.prediction import Prediction
from tfps.planning.search import Plan, level

# Rows of the table that are shown by default.
TOP = 12


def text(plan: Plan, top: int = TOP) -> str:
    """The plan for a terminal.

    Args:
      plan: of `tfps.plan`.
      top: how many of the fastest settings are shown, besides the recommended and the plain one.
    """
    fleet = plan.fleet
    lines = [
        f"{plan.model} on {fleet.workers:,} workers and {fleet.ps} ps, links {fleet.bandwidth}"
        + (f" (workers {fleet.worker_bandwidth})" if fleet.worker_bandwidth else "")
        + f", latency {fleet.worker_latency or fleet.latency}",
        "",
        *_table(_shown(plan, top), plan.best),
        "",
        "the recommended setting with other numbers of ps:",
        "",
        *_table(plan.by_ps, plan.best, by_ps=True),
        "",
        f"recommended: {plan.best.setting.flags}",
        plan.reason,
    ]
    return "\n".join(lines)


def _shown(plan: Plan, top: int) -> list[Prediction]:
    chosen = list(plan.candidates[:top])
    plain = [p for p in plan.candidates if level(p.setting) == 0]
    for one in (plan.best, *plain):
        if one not in chosen:
            chosen.append(one)
    return chosen


def _table(rows: Sequence[Prediction], best: Prediction, by_ps: bool = False) -> list[str]:
    head = ["ps" if by_ps else "setting", "step", "examples/s", "staleness"]
    head += ["up", "down", "a day", "on a ps", "on a worker", "limit"]
    cells = [head]
    for p in rows:
        name = str(p.ps) if by_ps else str(p.setting)
        mark = " *" if (p.ps == best.ps if by_ps else p.setting == best.setting) else ""
        cells.append(
            [
                name + mark,
                duration(p.step),
                f"{p.examples_per_second:,.0f}",
                f"{p.staleness:.1f}",
                size(p.up),
                size(p.down),
                size(p.bytes_per_day),
                size(p.ps_memory),
                size(p.worker_memory),
                p.limit,
            ]
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for k, row in enumerate(cells):
        left = {0, len(head) - 1}
        parts = [
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
        if k == 0:
            lines.append("  ".join("-" * w for w in widths))
    return lines


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds * 1e3:,.1f} ms" if seconds < 0.0995 else (
        f"{seconds * 1e3:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"
    )  # fmt: skip


def size(nbytes: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if nbytes >= 99.5 else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.0f} PB"


def write_json(plan: Plan, path: str) -> None:
    """Writes the plan to a file."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(plan.to_json(), file, indent=1)
        file.write("\n")


# Of the levels of `search.level`, in the plot.
_LEVELS = ("plain", "overlap 1", "overlap 2", "casts", "int8", "other codecs", "copies")


def plot(plan: Plan, path: str) -> None:
    """Draws the throughput of the settings, and of the recommended one by the number of ps.

    Args:
      plan: of `tfps.plan`.
      path: of the image; its suffix says the format.

    Raises:
      ConfigError: matplotlib is not installed, or does not know the format.
    """
    try:
        import matplotlib
    except ImportError:
        raise errors.ConfigError(
            f"plot={path!r} needs matplotlib, which is not installed; pip install 'tfps[plan]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    rows = plan.candidates[:24][::-1]
    colours = pyplot.get_cmap("tab10")
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 1.5 + 0.26 * len(rows)), width_ratios=(3, 2), layout="constrained"
    )
    names = [f"{p.setting}{' *' if p.setting == plan.best.setting else ''}" for p in rows]
    values = [p.examples_per_second for p in rows]
    left.barh(names, values, color=[colours(level(p.setting)) for p in rows])
    left.set(xlabel="examples/s of all workers", title=f"{plan.model}, {plan.fleet.ps} ps")
    left.tick_params(axis="y", labelsize=7)
    seen = sorted({level(p.setting) for p in rows})
    handles = [patches.Rectangle((0, 0), 1, 1, color=colours(i)) for i in seen]
    left.legend(handles, [_LEVELS[i] for i in seen], fontsize=7, loc="lower right")
    counts = [p.ps for p in plan.by_ps]
    right.plot(counts, [p.examples_per_second for p in plan.by_ps], marker="o")
    right.set(xscale="log", xlabel="ps", ylabel="examples/s", title=str(plan.best.setting))
    right.set_xticks(counts, [str(n) for n in counts])
    right.set_ylim(bottom=0)
    right.minorticks_off()
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as e:
        raise errors.ConfigError(f"plot={path!r}: {e}; end it in .png or .svg") from e
    finally:
        pyplot.close(figure)
