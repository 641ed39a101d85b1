"""Trains the demo's model in processes, and kills a worker, a ps and the chief meanwhile.

  python -m benchmarks.failures.chaos

The job is that of `make demo`, as processes that `python -m launch local` starts and starts again,
with snapshots and with a ledger. It ends as the demo does, but for noise, and the ledger says that
every batch was applied once on every ps. What follows `--` is passed on to the model's program.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from absl import app, flags

from benchmarks.failures import tasks

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", "runs/chaos", "For snapshots, the ledger, the board and the model.")
flags.DEFINE_integer("epochs", 4, "Epochs.", lower_bound=3)
flags.DEFINE_integer("steps_per_epoch", 550, "Batches in an epoch.", lower_bound=1)
flags.DEFINE_float("snapshot_every", 5.0, "Seconds from one snapshot to the next.", lower_bound=0.1)

# Who is killed after how many validations.
VICTIMS = {1: "worker 1", 2: "ps 0", 3: "chief 0"}
DELAY = 4.0  # s from a validation to the kill, so that it falls into an epoch


def command(folder: str, program: Sequence[str]) -> list[str]:
    """The command that runs the job.

    Args:
      folder: for all that the job writes.
      program: further arguments of the model's program.
    """
    python = [sys.executable, "-m"]
    return [
        *(*python, "launch", "local", "--workers=2", "--ps=2", "--settle=20", "--"),
        *("python", "-m", "models.gpt", f"--epochs={FLAGS.epochs}"),
        f"--steps_per_epoch={FLAGS.steps_per_epoch}",
        *(f"--snapshots={folder}/snapshots", f"--snapshot_every={FLAGS.snapshot_every}"),
        *(f"--ledger={folder}/ledger", f"--save={folder}/model.keras", *program),
    ]


def say(line: str) -> None:
    """Tells the user something, between the lines of the job."""
    print(f"\n*** {line}\n", flush=True)


def follow(job: subprocess.Popen, begun: float) -> list[str]:
    """Shows what the job writes, and kills its tasks; returns what was killed, and when."""
    killed: list[str] = []

    def kill(victim: str) -> None:
        if job.poll() is None:
            tasks.send(job.pid, victim)
            killed.append(f"{victim} after {time.monotonic() - begun:.0f} s")
            say(f"SIGKILL to {victim}")

    victims, validations = dict(VICTIMS), 0
    assert job.stdout is not None
    for line in job.stdout:
        print(line, end="", flush=True)
        if re.search(r"\[chief 0\]\s+validation: perplexity .*epoch took", line):
            validations += 1
            if victim := victims.pop(validations, None):
                timer = threading.Timer(DELAY, kill, [victim])
                timer.daemon = True
                timer.start()
    return killed


def main(argv: list[str]) -> int:
    """Runs the job; returns the exit code."""
    folder = FLAGS.folder
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    begun = time.monotonic()
    job = subprocess.Popen(
        command(folder, argv[1:]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    # Ctrl-C reaches the launcher, too, which ends its tasks in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        killed = follow(job, begun)
        code = job.wait()
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait()
    if code:
        print(f"error: the job ended with {code}", file=sys.stderr)
        return code
    say(f"killed: {', '.join(killed) or 'nobody, for it was over too soon'}")
    checked = subprocess.run([sys.executable, "-m", "tfps.ledger", "check", f"{folder}/ledger"])
    return checked.returncode if len(killed) == len(VICTIMS) else 1


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
