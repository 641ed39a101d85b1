"""A worker of a process group of PyTorch's over gloo."""

import datetime
import os
from collections.abc import Callable

import torch
from torch import distributed

from benchmarks.wire import lines

RANK = int(os.environ["RANK"])


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Takes a step of the optimizer; the model's hooks average the gradients over the workers."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def serve(handle: Callable[[dict], dict]) -> None:
    """Joins the process group, and then answers as `lines.serve` does."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # Address, port, rank and number of workers come from the environment.
    distributed.init_process_group("gloo", timeout=datetime.timedelta(minutes=5))
    lines.serve(handle)
