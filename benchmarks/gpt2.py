"""Trains GPT-2's 124 million parameters for some steps: memory of each task, and tokens per second.

  python -m benchmarks.gpt2 --folder=runs/gpt2                     # windows of 128 tokens
  python -m benchmarks.gpt2 --folder=runs/gpt2                     # the second part
  python -m benchmarks.gpt2 --folder=runs/gpt2-1024 --context=1024

`models.gpt --preset=gpt2` runs as a process for each task, by `launch local`, with 1 worker and 2
parameter servers. It reads the sources of Python's standard library as a stream. In the third
epoch, or after --seconds, the launcher is told to end by SIGTERM. The same command, given again,
goes on from the snapshot, until the end or for --seconds. The table has a line for each part. The
memory of a task is the largest resident set that its process had (VmHWM). 50,257 word pieces are
learned once, and filled up with ones that no text has.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

from absl import app, flags

from models import streams, texts
from models.gpt.presets import PRESETS
from models.gpt.tokenizers import SAMPLE, WordPiece

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", "runs/gpt2", "For the snapshots, the vocabulary and the model.")
flags.DEFINE_integer("context", 128, "Tokens in a window.", lower_bound=4)
flags.DEFINE_integer("batch_size", 1, "Windows in a batch.", lower_bound=1)
flags.DEFINE_integer("epochs", 5, "Epochs; the first part ends in the third.", lower_bound=3)
flags.DEFINE_integer("steps", 10, "Steps of an epoch.", lower_bound=2)
flags.DEFINE_float("seconds", 400.0, "After which a part ends at the latest.", lower_bound=1.0)

_GRACE = 120.0  # s for the last snapshot
_VOCABULARY = PRESETS["gpt2"]["vocabulary"]


class Memory(threading.Thread):
    """Watches the tasks that a launcher has started.

    Attributes:
      largest: task -> bytes, the largest resident set so far.
    """

    def __init__(self, launcher: int):
        """Watches from now on, until the launcher, a process id, has ended."""
        super().__init__(daemon=True)
        self.largest: dict[str, int] = {}
        self._launcher = launcher
        self.start()

    def run(self) -> None:
        while os.path.exists(f"/proc/{self._launcher}"):
            for process in filter(str.isdigit, os.listdir("/proc")):
                self._look(process)
            time.sleep(0.5)

    def _look(self, process: str) -> None:
        try:
            with open(f"/proc/{process}/environ", "rb") as f:
                named = [v for v in f.read().split(b"\0") if v.startswith(b"TF_CONFIG={")]
            if not named or FLAGS.folder not in self._command(process):
                return
            task = json.loads(named[0].partition(b"=")[2])["task"]
            with open(f"/proc/{process}/status", encoding="utf-8") as f:
                size = int(re.search(r"VmHWM:\s+(\d+) kB", f.read())[1]) << 10
        except (OSError, TypeError):
            return  # It is of somebody else, or has ended.
        name = f"{task['type']} {task['index']}"
        self.largest[name] = max(size, self.largest.get(name, 0))

    def _command(self, process: str) -> str:
        with open(f"/proc/{process}/cmdline", encoding="utf-8") as f:
            return f.read()


def part(command: list[str], enough: str | None) -> tuple[int, list[str], Memory, float]:
    """Runs the program, or a part of it.

    Args:
      command: starts it.
      enough: what the line has with which the part ends; None to run to the end.

    Returns:
      The exit code, the lines of output, the memory of the tasks, and the seconds.
    """
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as launcher:
        memory = Memory(launcher.pid)
        late = threading.Timer(FLAGS.seconds, launcher.send_signal, [signal.SIGTERM])
        late.start()
        lines = []
        for raw in launcher.stdout:
            lines.append(raw.decode("utf-8", "replace").rstrip())
            print(f"{time.monotonic() - started:6.1f} {lines[-1]}", flush=True)
            if enough is not None and enough in lines[-1]:
                launcher.send_signal(signal.SIGTERM)
                enough = None
        code = launcher.wait()
        late.cancel()
    return code, lines, memory, time.monotonic() - started


def row(title: str, lines: list[str], memory: Memory, seconds: float) -> str:
    """A line of the table."""
    speeds = [float(s.replace(",", "")) for s in re.findall(r"([\d,]+) tokens/s", "\n".join(lines))]
    cells = [title, f"{speeds[-1]:,.0f}" if speeds else "", f"{seconds:.0f}"]
    for task in ("chief 0", "worker 0", "ps 0", "ps 1"):
        cells.append(f"{memory.largest.get(task, 0) / 2**30:.2f}")
    return f"| {' | '.join(cells)} |"


def vocabulary() -> str:
    """The path of a vocabulary of the preset's size, made if it is not there."""
    path = os.path.join(FLAGS.folder, "vocab.txt")
    if not os.path.exists(path):
        os.makedirs(FLAGS.folder, exist_ok=True)
        training, _ = streams.split(texts.standard_library())
        pieces = WordPiece.learn(streams.sample(training, SAMPLE), _VOCABULARY).pieces
        print(f"{len(pieces):,} word pieces learned")
        spare = [f"\ue000{i}" for i in range(_VOCABULARY)]  # Of Unicode's private use.
        WordPiece([*pieces, *spare][:_VOCABULARY]).save(path)
    return path


def main(argv: list[str]) -> None:
    """Prints the table."""
    program = [
        sys.executable, "-m", "models.gpt", "--preset=gpt2", "--stream",
        f"--vocabulary_file={vocabulary()}", f"--context={FLAGS.context}",
        f"--batch_size={FLAGS.batch_size}", f"--epochs={FLAGS.epochs}",
        f"--steps_per_epoch={FLAGS.steps}", "--steps_per_execution=1", "--validation_steps=1",
        "--generate_tokens=1", "--learning_rate=3e-4", "--warmup_steps=10",
        f"--save={FLAGS.folder}/model.keras", f"--snapshots={FLAGS.folder}/snapshots",
        "--snapshot_every=120", *argv[1:],
    ]  # fmt: skip
    command = [sys.executable, "-m", "launch", "local", "--workers=1", "--ps=2"]
    command += [f"--grace={_GRACE}", "--", *program]
    path = os.path.join(FLAGS.folder, "parts.json")
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            rows = json.load(f)
    code, *found = part(command, None if rows else "epoch 3/")
    rows.append(row(f"{len(rows) + 1}, ended with {code}", *found))
    with open(path, "w", encoding="utf-8") as f:
        json.dump(rows, f)
    print(
        f"\n| part ({FLAGS.batch_size * FLAGS.context} tokens a step) | tokens/s | seconds "
        "| chief, GiB | worker | ps 0 | ps 1 |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    app.run(main)
