"""PyTorch DistributedDataParallel over gloo: one of the workers."""

import functools
import itertools
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks import timing, torch_worker
from benchmarks.allreduce import networks
from benchmarks.allreduce.model_torch import Net
from benchmarks.allreduce.networks import LEARNING_RATE, NETWORKS


@functools.cache
def prepared(name: str) -> tuple[Net, Callable[[], None]]:
    """Makes (network, step); all workers must call this at once."""
    net = Net(name)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    arrays = networks.batches(NETWORKS[name], torch_worker.RANK)
    x, y = (torch.from_numpy(array) for array in arrays)
    numbers = itertools.cycle(range(len(x)))

    def step():
        i = next(numbers)
        loss = functional.mse_loss(model(x[i]), y[i])
        torch_worker.descend(optimizer, loss)

    return net, step


def handle(message: dict) -> dict:
    net, step = prepared(message["settings"]["network"])
    if path := message.get("weights"):
        for _ in range(message["steps"]):
            step()
        networks.save(net.weights(), path)
        return {}
    return timing.timed(step, message)


if __name__ == "__main__":
    torch_worker.serve(handle)
