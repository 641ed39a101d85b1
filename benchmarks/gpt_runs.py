"""Runs of `python -m models.gpt`, and the results that they print and log."""

import glob
import re
import subprocess
import sys
import tempfile
import time

TOKENS_PER_STEP = 1024  # 16 windows of 64
_LIMIT = 3600  # s for one run


def train(*flags: str) -> dict:
    """Runs the binary once with these flags, which are given without dashes.

    Returns:
      `bits_per_byte` of the last validation, `up` and `down` a step, `staleness`, `seconds`
      of the whole program, and `curve`: per epoch, [steps per second while it trained,
      validation loss in nats a token].
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "models.gpt", f"--save={folder}/model.keras",
            f"--log_dir={folder}", "--generate_tokens=1", *(f"--{f}" for f in flags),
        ]  # fmt: skip
        started = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False)
        seconds = time.perf_counter() - started
        if run.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
        curve = _curve(folder)
    return {
        "bits_per_byte": float(re.findall(r"([\d.]+) bits per byte after", run.stdout)[-1]),
        "up": re.findall(r"sends ([\d.]+ \w+)", run.stdout)[-1],
        "down": re.findall(r"receives ([\d.]+ \w+)", run.stdout)[-1],
        "staleness": float(re.findall(r"staleness ([\d.]+)", run.stdout)[-1]),
        "seconds": seconds,
        "curve": curve,
    }


def _curve(folder: str) -> list[list[float]]:
    rates = _scalars(folder, "tfps", "epoch_steps_per_second")
    losses = _scalars(folder, "validation", "epoch_loss")
    return [[rate, loss] for rate, loss in zip(rates, losses, strict=True)]


def _scalars(folder: str, run: str, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    values = []
    for path in sorted(glob.glob(f"{folder}/**/{run}/*tfevents*", recursive=True)):
        accumulator = EventAccumulator(path).Reload()
        if tag in accumulator.Tags()["tensors"]:
            values += [
                (e.step, float(tensor_util.make_ndarray(e.tensor_proto)))
                for e in accumulator.Tensors(tag)
            ]
    return [value for _, value in sorted(values)]
