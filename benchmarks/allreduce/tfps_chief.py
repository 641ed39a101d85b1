"""The chief of tfps. Each policy and network has its own Trainer on one strategy."""

import functools

import tensorflow as tf

import tfps
from benchmarks import fit_clock
from benchmarks.allreduce import model_keras, networks
from benchmarks.allreduce.networks import NETWORKS, WORKERS
from benchmarks.wire import lines
from benchmarks.wire.tfps_chief import connected


@functools.cache
def trainer(name: str, consistency: str, overlap: int) -> tfps.Trainer:
    policy = tfps.consistency.parse(consistency)
    return tfps.Trainer(model_keras.build(name), connected(), policy, overlap=overlap)


def dataset_fn(name: str, context: tfps.Context) -> tf.data.Dataset:
    return model_keras.dataset(networks.batches(NETWORKS[name], context.worker_index))


def handle(message: dict) -> dict:
    settings = message["settings"]
    overlap = settings["overlap"]
    turn = trainer(settings["network"], settings["consistency"], overlap)
    data = functools.partial(dataset_fn, settings["network"])
    if path := message.get("weights"):
        turn.fit(data, steps_per_epoch=WORKERS * message["steps"], verbose=0)
        networks.save(turn.model.get_weights(), path)
        return {}
    return fit_clock.timed(functools.partial(turn.fit, data), message, WORKERS, overlap)


if __name__ == "__main__":
    lines.serve(handle)
