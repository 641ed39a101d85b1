"""TensorFlow's MirroredStrategy: one process, Keras's own `fit`, a device for each worker."""

import functools
import os

import keras
import tensorflow as tf

from benchmarks import fit_clock
from benchmarks.allreduce import model_keras, networks
from benchmarks.allreduce.networks import NETWORKS, WORKERS
from benchmarks.wire import lines
from models.allreduce import Mirrored, logical_devices


@functools.cache
def way() -> Mirrored:
    return Mirrored(logical_devices(WORKERS))


@functools.cache
def prepared(name: str) -> tuple[keras.Model, tf.data.Dataset]:
    with way().scope():
        model = model_keras.build(name)
    return model, model_keras.dataset(networks.global_batches(NETWORKS[name]))


def handle(message: dict) -> dict:
    model, batches = prepared(message["settings"]["network"])
    if path := message.get("weights"):
        model.fit(batches, steps_per_epoch=message["steps"], verbose=0)
        networks.save(model.get_weights(), path)
        return {}
    answer = fit_clock.timed(functools.partial(model.fit, batches), message)
    # A step of this process is one of each worker.
    return {**answer, "steps": WORKERS * answer["steps"]}


if __name__ == "__main__":
    # All devices are in this process, which has the threads of all workers.
    threads = WORKERS * int(os.environ["TF_NUM_INTRAOP_THREADS"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    lines.serve(handle)
