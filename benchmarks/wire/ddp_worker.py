"""PyTorch DistributedDataParallel over gloo: one of the workers, a model for each hook."""

import functools

import torch
from torch.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    powerSGD_hook as power_sgd,
)
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks import timing, torch_worker
from benchmarks.wire.model_torch import GPT
from benchmarks.wire.sizes import BATCH, CONTEXT, LEARNING_RATE, VOCABULARY

POWER_SGD_RANK = 4
# Steps before PowerSGD begins. The first turn, which is not counted, has as many steps.
POWER_SGD_START = 2
# The size of a bucket in MB, so large that all gradients are in one bucket. PowerSGD's hook sends
# several messages for each bucket. With gloo, the messages of two buckets may be in a different
# order on each worker, which crashes.
POWER_SGD_BUCKET = 64


@functools.cache
def stepper(hook: str):
    """Makes (model, step). DDP makes the weights equal, so all workers must call this at once."""
    torch.manual_seed(0)
    bucket = POWER_SGD_BUCKET if hook == "powersgd" else None
    model = DistributedDataParallel(GPT(), bucket_cap_mb=bucket)
    if hook == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif hook == "powersgd":
        state = power_sgd.PowerSGDState(
            None,
            matrix_approximation_rank=POWER_SGD_RANK,
            start_powerSGD_iter=POWER_SGD_START,
        )
        model.register_comm_hook(state, power_sgd.powerSGD_hook)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    generator = torch.Generator().manual_seed(torch_worker.RANK)

    def step():
        tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=generator)
        logits = model(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        torch_worker.descend(optimizer, loss)

    return model, step


def handle(message: dict) -> dict:
    model, step = stepper(message["settings"]["hook"])
    parameters = sum(p.numel() for p in model.parameters())
    return {**timing.timed(step, message), "parameters": parameters}


if __name__ == "__main__":
    torch_worker.serve(handle)
