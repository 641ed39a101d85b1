"""The results as tables, bars, JSON and a plot. Nothing here runs a system."""

import json
import os
import platform
import statistics
from importlib import metadata

from benchmarks.wire.processor import ROLES
from benchmarks.wire.sizes import BATCH, CONTEXT, WORKERS
from benchmarks.wire.systems import BARS, CUSTOM_LOOP, Bar, System

COLOURS = {  # of a family in the plot
    "tfps": "tab:blue",
    "traffic": "tab:purple",
    "local": "tab:cyan",
    "alone": "tab:gray",
    "stock": "tab:orange",
    "mwms": "tab:green",
    "ddp": "tab:red",
}

_PACKAGES = ("tensorflow", "keras", "tf_keras", "torch", "numpy")


def result(system: System, turns: list[dict], error: str | None = None) -> dict:
    """What is known of a system on one link.

    Args:
      system: the system.
      turns: of each turn, `step` in seconds, `up` and `down` in bytes or None, and
        what the system itself predicts, `predicted_up` and `predicted_down`.
      error: why it has no more turns.

    Returns:
      Medians over the turns, as a dict that JSON can hold.
    """
    found = {
        "system": system.name,
        "family": system.family,
        "lossless": system.lossless,
        "error": error,
        "turns": turns,
    }
    if turns:
        step = _median(turns, "step")
        found.update(
            step=step,
            step_low=min(t["step"] for t in turns),
            step_high=max(t["step"] for t in turns),
            tokens_per_second=WORKERS * BATCH * CONTEXT / step,
        )
        for key in ("up", "down", "predicted_up", "predicted_down"):
            found[key] = _median(turns, key)
        found["processor"] = _processor(turns)
    return found


def _processor(turns: list[dict]) -> dict[str, tuple[float, float]]:
    """Role -> (user, system) seconds of processor time for a step of one worker."""
    known = [t["processor"] for t in turns if t.get("processor")]
    roles = [role for role in ROLES if known and all(role in one for one in known)]
    return {
        role: (
            statistics.median(one[role][0] for one in known),
            statistics.median(one[role][1] for one in known),
        )
        for role in roles
    }


def _median(turns: list[dict], key: str) -> float | None:
    values = [t[key] for t in turns if t.get(key) is not None]
    return statistics.median(values) if values else None


def table(results: list[dict]) -> str:
    """The systems on one link as a Markdown table."""
    base = next((r.get("step") for r in results if r["system"] == CUSTOM_LOOP), None)
    lines = [
        "| system | step (spread), ms | tokens/s | MB up (predicted) | MB down (predicted) "
        "| times stock |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        error = (r["error"] or "").replace("|", "/")
        if "step" not in r:
            lines.append(f"| {r['system']} | failed: {error} | | | | |")
            continue
        name = f"{r['system']} (then failed: {error})" if error else r["system"]
        ratio = f"{base / r['step']:.2f}" if base else "—"
        lines.append(
            f"| {name} | {_ms(r['step'])} ({_ms(r['step_low'])} to {_ms(r['step_high'])}) "
            f"| {r['tokens_per_second']:,.0f} "
            f"| {_megabytes(r, 'up')} | {_megabytes(r, 'down')} | {ratio} |"
        )
    return "\n".join(lines)


def processor_table(results: list[dict]) -> str:
    """The processor time of the systems on one link as a Markdown table."""
    known = [r for r in results if r.get("processor")]
    alone = next((_all(r) for r in known if r["family"] == "alone"), None)
    lines = [
        "| system | workers, ms | ps, ms | chief, ms | all, ms | times workers alone |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in known:
        cells = [_split(r["processor"].get(role)) for role in ROLES]
        ratio = f"{_all(r) / alone:.2f}" if alone else "—"
        lines.append(f"| {r['system']} | {' | '.join(cells)} | {_ms(_all(r))} | {ratio} |")
    return "\n".join(lines)


def _all(r: dict) -> float:
    return sum(sum(times) for times in r["processor"].values())


def _split(times: tuple[float, float] | None) -> str:
    return "—" if times is None else f"{_ms(times[0])} + {_ms(times[1])}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}"


def _megabytes(r: dict, way: str) -> str:
    measured, predicted = r[way], r[f"predicted_{way}"]
    text = "—" if measured is None else f"{measured / 1e6:.2f}"
    if predicted is None:
        return text
    text += f" ({predicted / 1e6:.2f}"
    if measured is not None and predicted:
        text += f", ×{measured / predicted:.2f}"
    return text + ")"


def judge(bar: Bar, results: list[dict]) -> dict | None:
    """Whether a bar is met; None if one of its sides was not measured."""
    done = [r for r in results if "step" in r]
    ours = [r for r in done if r["family"] == bar.family and (bar.codec or r["lossless"])]
    theirs = [r for r in done if bar.against in (r["system"], r["family"])]
    if not ours or not theirs:
        return None
    best = min(ours, key=lambda r: r["step"])
    rival = min(theirs, key=lambda r: r["step"])
    ratio = rival["step"] / best["step"]
    return {
        "link": bar.link,
        "best": best["system"],
        "against": rival["system"],
        "ratio": ratio,
        "wanted": bar.ratio,
        "met": ratio >= bar.ratio,
    }


def verdicts(links: dict[str, list[dict]]) -> list[dict]:
    """All bars that could be judged, from link -> results."""
    found = [judge(bar, links[bar.link]) for bar in BARS if bar.link in links]
    return [verdict for verdict in found if verdict]


def bars_table(judged: list[dict]) -> str:
    """The bars as a Markdown table."""
    lines = ["| link | tfps | against | wanted | measured | |", "|---|---|---|---:|---:|---|"]
    for v in judged:
        lines.append(
            f"| {v['link']} | {v['best']} | {v['against']} | {v['wanted']:.1f} "
            f"| {v['ratio']:.2f} | {'met' if v['met'] else 'MISSED'} |"
        )
    return "\n".join(lines)


def about() -> dict:
    """The versions and the machine of the measurement."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }


def write(path: str, **content) -> None:
    """Writes everything as JSON."""
    with open(path, "w") as file:
        json.dump({"about": about(), **content}, file, indent=1)


def plot(path: str, links: dict[str, list[dict]]) -> bool:
    """Plots step times, a panel for each link; returns False if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 1.2 + 0.28 * max(len(results) for results in links.values())
    size = (6.5 * len(links), height)
    figure, panels = pyplot.subplots(1, len(links), figsize=size, squeeze=False)
    for axes, (link, results) in zip(panels[0], links.items(), strict=True):
        done = [r for r in results if "step" in r][::-1]
        steps = [1e3 * r["step"] for r in done]
        below = [1e3 * (r["step"] - r["step_low"]) for r in done]
        above = [1e3 * (r["step_high"] - r["step"]) for r in done]
        axes.barh(
            [r["system"] for r in done],
            steps,
            xerr=[below, above],
            color=[COLOURS[r["family"]] for r in done],
        )
        axes.set_title("loopback" if link == "none" else f"{link} links")
        axes.set_xlabel("ms per step, median and spread")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
