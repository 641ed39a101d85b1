"""TensorFlow's MultiWorkerMirroredStrategy: one of the workers, all-reduce in a ring."""

import functools

import tensorflow as tf

from benchmarks import timing
from benchmarks.wire import data, lines, model_keras
from benchmarks.wire.sizes import WORKERS


@functools.cache
def stepper():
    """Connects the workers, which must all call this at once; returns (model, step)."""
    ring = tf.distribute.experimental.CommunicationImplementation.RING
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(implementation=ring)
    )
    with strategy.scope():
        model = model_keras.legacy()
    iterator = iter(
        strategy.distribute_datasets_from_function(
            lambda context: data.dataset(context.input_pipeline_id)
        )
    )
    train_step = functools.partial(model_keras.train_step, model, replicas=WORKERS)

    @tf.function
    def step(iterator):
        return strategy.run(train_step, (next(iterator),))

    return model, lambda: step(iterator)


def handle(message: dict) -> dict:
    model, step = stepper()
    timed = timing.timed(step, message, wait=lambda loss: loss.numpy())
    return {**timed, "parameters": model.count_params()}


if __name__ == "__main__":
    # Each all-reduce blocks a thread while it waits for the other worker.
    tf.config.threading.set_inter_op_parallelism_threads(16)
    lines.serve(handle)
