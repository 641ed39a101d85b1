"""The chief of tfps. Each policy and network has its own Trainer on one strategy."""

import functools

import tensorflow as tf

import tfps
from benchmarks.allreduce import model_keras, networks
from benchmarks.allreduce.networks import NETWORKS, WORKERS
from benchmarks.wire import lines
from benchmarks.wire.tfps_chief import Clock, connected


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
    # As many more steps as overlap are taken before and after, so that as many are under way
    # wherever the clock starts and stops.
    first = WORKERS * (message["warmup"] + overlap)
    last = first + WORKERS * message["steps"]
    clock = Clock(first, last)
    turn.fit(data, steps_per_epoch=last + WORKERS * overlap, callbacks=[clock], verbose=0)
    (begun, start), (ended, stop) = clock.marks
    return {"seconds": stop - start, "steps": ended - begun}


if __name__ == "__main__":
    lines.serve(handle)
