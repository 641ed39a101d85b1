"""TensorFlow's MultiWorkerMirroredStrategy: one of the workers, with the loop of `models`."""

import functools

import tensorflow as tf

from benchmarks import fit_clock
from benchmarks.allreduce import model_keras, networks
from benchmarks.allreduce.networks import NETWORKS
from benchmarks.wire import lines
from models.multiworker import Trainer


@functools.cache
def strategy() -> tf.distribute.MultiWorkerMirroredStrategy:
    """Connects the workers, which must all call this at once."""
    ring = tf.distribute.experimental.CommunicationImplementation.RING
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(implementation=ring)
    )


@functools.cache
def prepared(name: str) -> tuple[Trainer, tf.data.Dataset]:
    with strategy().scope():
        model = model_keras.build(name)
    batches = model_keras.dataset(networks.global_batches(NETWORKS[name]))
    return Trainer(model, strategy()), batches


def handle(message: dict) -> dict:
    trainer, batches = prepared(message["settings"]["network"])
    if path := message.get("weights"):
        trainer.fit(batches, steps_per_epoch=message["steps"])
        networks.save(trainer.model.get_weights(), path)
        return {}
    return fit_clock.timed(functools.partial(trainer.fit, batches), message)


if __name__ == "__main__":
    # Each all-reduce blocks a thread while it waits for the other worker.
    tf.config.threading.set_inter_op_parallelism_threads(16)
    lines.serve(handle)
