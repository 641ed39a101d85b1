"""PyTorch DistributedDataParallel over gloo: one of the workers."""

import datetime
import functools
import itertools
import os
import time
from collections.abc import Callable

import torch
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.allreduce import networks
from benchmarks.allreduce.model_torch import Net
from benchmarks.allreduce.networks import LEARNING_RATE, NETWORKS
from benchmarks.wire import lines

RANK = int(os.environ["RANK"])


@functools.cache
def prepared(name: str) -> tuple[Net, Callable[[], None]]:
    """Makes (network, step); all workers must call this at once."""
    net = Net(name)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    x, y = (torch.from_numpy(array) for array in networks.batches(NETWORKS[name], RANK))
    numbers = itertools.cycle(range(len(x)))

    def step():
        i = next(numbers)
        loss = functional.mse_loss(model(x[i]), y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return net, step


def handle(message: dict) -> dict:
    net, step = prepared(message["settings"]["network"])
    if path := message.get("weights"):
        for _ in range(message["steps"]):
            step()
        networks.save(net.weights(), path)
        return {}
    for _ in range(message["warmup"]):
        step()
    lines.mark()
    start = time.perf_counter()
    for _ in range(message["steps"]):
        step()
    seconds = time.perf_counter() - start
    lines.mark()
    return {"seconds": seconds, "steps": message["steps"]}


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # Address, port, rank and number of workers come from the environment.
    distributed.init_process_group("gloo", timeout=datetime.timedelta(minutes=5))
    lines.serve(handle)


if __name__ == "__main__":
    main()
