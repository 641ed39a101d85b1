"""Measurements in alternation, and their table."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def alternate(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls every run once in each round, so that a slow phase of the machine slows all runs.

    Args:
      runs: name -> a function that returns a rate.
      rounds: how often.

    Returns:
      name -> the rates of all rounds.
    """
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(run())
    return rates


def timed(fit: Callable[[], object], units: float) -> float:
    """Runs `fit` once; returns units per second."""
    start = time.perf_counter()
    fit()
    return units / (time.perf_counter() - start)


def in_a_process(module: str, *arguments: str) -> Any:
    """Runs a module with a fresh interpreter; returns the JSON that is its last line of output."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(case: str, unit: str, rates: dict[str, list[float]], base: str) -> dict:
    """Medians, spread and ratios to the run named `base`."""
    medians = {name: statistics.median(r) for name, r in rates.items()}
    return {
        "case": case,
        "unit": unit,
        "rates": rates,
        "median": medians,
        "ratio": {name: medians[name] / medians[base] for name in rates},
    }


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table: median, lowest to highest, ratio to the base."""
    lines = ["| case | system | median | spread | ratio |", "|---|---|---:|---:|---:|"]
    for r in rows:
        for name, rates in r["rates"].items():
            lines.append(
                f"| {r['case']} | {name} | {r['median'][name]:,.0f} {r['unit']} "
                f"| {min(rates):,.0f} to {max(rates):,.0f} | {r['ratio'][name]:.2f} |"
            )
    return "\n".join(lines)


def write(path: str, rows: list[dict]) -> None:
    """Writes the rows, and what they were measured with, as JSON, and says so."""
    about = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    with open(path, "w") as f:
        json.dump({"about": about, "rows": rows}, f, indent=1)
    print(f"\nwritten: {path}")
