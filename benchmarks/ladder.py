"""Trains the models of `models/` to their bars, on servers and in one process of plain Keras.

  python -m benchmarks.ladder                       # all
  python -m benchmarks.ladder --models=recommender --seeds=3

Each run is a process. The tables show, for each way of training, the mean of what was reached on
held-out data with the smallest and the largest of the seeds, and the seconds of the longest run,
from the start of the program's `train` to the last figure, reading the data included.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from absl import app, flags

FLAGS = flags.FLAGS

_LIMIT = 1800  # s for one run

# Title -> flags of the way to train.
_WAYS = {
    "2 workers, 2 ps": [],
    "the same, push int8, pull bfloat16": ["--push=int8", "--pull=bfloat16"],
    "one process, plain Keras": ["--strategy=keras"],
}


@dataclasses.dataclass(frozen=True)
class Rung:
    """A model with its measure.

    Attributes:
      model: its name in `models/`.
      figure: what is measured, a name in `held_out` of the model's facts.
      variants: title -> flags; each is trained in all ways.
      alone: title -> flags of what is trained in one process only, as a baseline.
      beside: a name in `held_out` of what every run computes for comparison.
    """

    model: str
    figure: str
    variants: Mapping[str, list[str]] = dataclasses.field(default_factory=lambda: {"": []})
    alone: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    beside: str = ""


RUNGS = [
    Rung("linear", "r_squared", beside="least_squares"),
    Rung("image_classification", "accuracy"),
    Rung("bert", "accuracy", beside="most_frequent"),
    Rung("ner", "f1", alone={"random start": ["--init=random"]}),
    Rung("segmentation", "iou", beside="colour_table"),
    Rung("speech", "cer", beside="most_frequent"),
    Rung("translation", "chrf", beside="nearest"),
    Rung(
        "recommender",
        "auc",
        {"two towers": ["--model=two_tower"], "DLRM": ["--model=dlrm"]},
        {"factorization machine": ["--model=fm"]},
    ),
    Rung("text_classification", "macro_f1"),
    Rung("word2vec", "wordsim353"),
]

flags.DEFINE_list("models", [rung.model for rung in RUNGS], "Which are trained.")
flags.DEFINE_integer("seeds", 3, "Runs of each, with seeds from 0 on.", lower_bound=1)
flags.DEFINE_string("packages", "data", "Folder of the packages that `make data-<name>` downloads.")


def run(model: str, args: list[str]) -> dict:
    """Trains once, in a process; returns `held_out` of the model's facts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"models.{model}", f"--packages={FLAGS.packages}"]
        command += [f"--save={folder}/m.keras", f"--log_dir={folder}/board", *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        with open(f"{folder}/m.json", encoding="utf-8") as f:
            return json.load(f)["held_out"]


def row(rung: Rung, title: str, args: list[str]) -> str:
    """A line of the table: what the seeds came to."""
    found = [run(rung.model, [*args, f"--seed={seed}"]) for seed in range(FLAGS.seeds)]
    values = [one[rung.figure] for one in found]
    cells = [title, f"{statistics.mean(values):.4f}", f"{min(values):.4f} to {max(values):.4f}"]
    if rung.beside:
        cells.append(f"{found[0][rung.beside]:.4f}")
    cells.append(f"{max(one['seconds'] for one in found):.0f} s")
    return f"| {' | '.join(cells)} |"


def table(rung: Rung) -> None:
    """Trains a model in all ways, and prints its table line by line."""
    beside = [rung.beside.replace("_", " ")] if rung.beside else []
    heads = ["trained on", rung.figure, f"{FLAGS.seeds} seeds", *beside, "longest"]
    print(f"\n{rung.model}\n\n| {' | '.join(heads)} |")
    print(f"|---|{'---:|' * (len(heads) - 1)}", flush=True)
    for name, variant in rung.variants.items():
        for way, args in _WAYS.items():
            title = f"{name}: {way}" if name else way
            print(row(rung, title, [*variant, *args]), flush=True)
    for name, args in rung.alone.items():
        print(row(rung, f"{name}: one process", [*args, "--strategy=keras"]), flush=True)


def main(argv: list[str]) -> None:
    """Trains the models of --models."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    for rung in RUNGS:
        if rung.model in FLAGS.models:
            table(rung)


if __name__ == "__main__":
    app.run(main)
