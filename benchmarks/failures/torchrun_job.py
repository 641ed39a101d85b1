"""The job of `job.py` in PyTorch, for `torchrun --max-restarts`: it goes on from a checkpoint.

When a worker dies, `torchrun` ends the others as well and starts all of them again. The events are
those of `job.py`; the checkpoint is written by rank 0, as often as tfps takes snapshots.

  12.345 steps 71             so many steps are done, of this life of the workers
  12.345 back worker 1        the workers have started again, and have taken a step
  12.345 scheduled 500        at the end: steps that were taken, and steps that the weights have had
  12.345 updates 480
"""

import argparse
import os
import pathlib
import time

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.torch_worker import RANK, descend

WIDTH, BATCH = 256, 32  # as in `job.py`
_LOOK = 20  # steps from one look for the end to the next


class Events:
    """Appends events to a file, from rank 0 alone."""

    def __init__(self, path: str):
        self._path = path

    def note(self, what: str) -> None:
        """Appends an event."""
        if RANK == 0:
            with open(self._path, "a") as f:
                f.write(f"{time.monotonic():.4f} {what}\n")

    def steps(self) -> int:
        """How many steps were taken, in all lives."""
        words = (line.split() for line in pathlib.Path(self._path).read_text().splitlines())
        return sum(w[1] == "steps" for w in words)


def train(arguments: argparse.Namespace) -> None:
    """Trains until the file `enough` is there."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    dense = [m for _ in range(3) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    plain = nn.Sequential(*dense, nn.Linear(WIDTH, 1))
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3)
    done = _restore(arguments.checkpoint, plain, optimizer)
    model = DistributedDataParallel(plain)
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(RANK))
    events, saved, first = Events(arguments.events), time.monotonic(), done
    enough = torch.zeros(1)
    while not enough:
        descend(optimizer, torch.square(model(x) - x[:, :1]).mean())
        done += 1
        events.note(f"steps {done - first}")
        if done == first + 1 and int(os.environ["TORCHELASTIC_RESTART_COUNT"]):
            events.note("back worker 1")
        if RANK == 0 and time.monotonic() > saved + arguments.every:
            _save(arguments.checkpoint, plain, optimizer, done)
            saved = time.monotonic()
        if done % _LOOK == 0:
            enough += os.path.exists(arguments.enough)
            distributed.all_reduce(enough)
    if RANK == 0:
        events.note(f"scheduled {events.steps()}")
        events.note(f"updates {done}")


def _restore(path: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the checkpoint, if there is one; returns how many steps it has had."""
    if not os.path.exists(path):
        return 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["done"]


def _save(path: str, model: nn.Module, optimizer: torch.optim.Optimizer, done: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
    torch.save(state, path + ".draft")
    os.replace(path + ".draft", path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--events", "--enough", "--checkpoint"):
        parser.add_argument(name, required=True)
    parser.add_argument("--every", type=float, default=5.0)
    train(parser.parse_args())
