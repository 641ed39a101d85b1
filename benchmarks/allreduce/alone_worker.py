"""Plain Keras on each worker, which never communicate: the bound on every system's speed.

For comparing weights, each trains on the batches of all workers at once.
"""

import functools
import os

import keras

from benchmarks import fit_clock
from benchmarks.allreduce import model_keras, networks
from benchmarks.allreduce.networks import NETWORKS
from benchmarks.wire import lines

RANK = int(os.environ["RANK"])


@functools.cache
def prepared(name: str) -> tuple[keras.Model, object]:
    arrays = networks.batches(NETWORKS[name], RANK)
    return model_keras.build(name), model_keras.dataset(arrays)


def handle(message: dict) -> dict:
    name = message["settings"]["network"]
    if path := message.get("weights"):
        model = model_keras.build(name)
        batches = model_keras.dataset(networks.global_batches(NETWORKS[name]))
        model.fit(batches, steps_per_epoch=message["steps"], verbose=0)
        networks.save(model.get_weights(), path)
        return {}
    model, batches = prepared(name)
    return fit_clock.timed(functools.partial(model.fit, batches), message)


if __name__ == "__main__":
    lines.serve(handle)
