"""How long a job is held up when a task dies: time to notice, time to the next step, steps lost.

  python -m benchmarks.recovery --rounds=3

A job of 2 workers and 2 ps trains under `python -m launch local`, which starts again what dies. In
each turn a task is killed or frozen once. TensorFlow's own coordinator is beside it for the kill of
a worker; it does not survive the others. So is PyTorch's `torchrun`, where torch is installed.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import sys
import tempfile

from absl import app, flags

from benchmarks.failures.turns import CASES, Found, Turn, table

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 3, "Turns of each case.", lower_bound=1)
flags.DEFINE_multi_string("cases", [], "Only those whose name contains this.")
flags.DEFINE_float("snapshot_every", 5.0, "Seconds from one snapshot to the next.", lower_bound=0.1)
flags.DEFINE_float("before", 12.0, "Seconds of training before the kill.", lower_bound=1.0)
flags.DEFINE_float("timeout", 240.0, "Seconds that a turn may take.", lower_bound=10.0)
flags.DEFINE_string("json", "runs/recovery.json", "File for the results.")


def main(argv: list[str]) -> int:
    """Measures in turns, and prints the table."""
    del argv
    chosen = [c for c in CASES if not FLAGS.cases or any(n in c.name for n in FLAGS.cases)]
    if importlib.util.find_spec("torch") is None:
        chosen = [c for c in chosen if c.system != "torchrun"]
        print("left out, for torch is not installed: torchrun")
    found: dict[str, list[Found]] = {}
    for _ in range(FLAGS.rounds):
        for case in chosen:
            folder = pathlib.Path(tempfile.mkdtemp(prefix="recovery-"))
            turn = Turn(case, folder, FLAGS.before, FLAGS.snapshot_every, FLAGS.timeout).run()
            found.setdefault(case.name, []).append(turn)
            print(f"{case.name}: {turn}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(table(found))
    os.makedirs(os.path.dirname(FLAGS.json) or ".", exist_ok=True)
    with open(FLAGS.json, "w") as f:
        json.dump({name: [t._asdict() for t in turns] for name, turns in found.items()}, f)
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
