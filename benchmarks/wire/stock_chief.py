"""TensorFlow's own ParameterServerStrategy: a custom loop, and tf_keras's `Model.fit`.

Both train one model: variables, placement and coordinator are the same. Placement is
the strategy's default, round-robin.
"""

import functools
import time

import tensorflow as tf
import tf_keras

from benchmarks.wire import data, lines, model_keras
from benchmarks.wire.sizes import WORKERS


class Stock:
    """The connected strategy, and a way to take steps for each kind of loop."""

    def __init__(self):
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        self.strategy = tf.distribute.ParameterServerStrategy(resolver)
        self.coordinator = tf.distribute.coordinator.ClusterCoordinator(self.strategy)
        with self.strategy.scope():
            self.model = model_keras.legacy()
        # A worker makes its dataset without knowing its own index. So all workers have the same
        # tokens, which costs the same time.
        self._iterator = iter(
            self.coordinator.create_per_worker_dataset(lambda: data.dataset(worker=0))
        )
        self._creator = tf_keras.utils.experimental.DatasetCreator(lambda _: data.dataset(worker=0))

        @tf.function
        def step(iterator):
            batch = next(iterator)
            return self.strategy.run(
                functools.partial(model_keras.train_step, self.model), (batch,)
            )

        self._step = step

    def custom(self, steps: int) -> float:
        """Takes the steps, over all workers; returns the seconds."""
        start = time.perf_counter()
        for _ in range(steps):
            self.coordinator.schedule(self._step, args=(self._iterator,))
        self.coordinator.join()
        return time.perf_counter() - start

    def fit(self, steps: int) -> float:
        """Takes the steps with `fit`; returns the seconds of the epoch alone."""
        clock = Epoch()
        self.model.fit(self._creator, steps_per_epoch=steps, callbacks=[clock], verbose=0)
        return clock.seconds


class Epoch(tf_keras.callbacks.Callback):
    """Times an epoch, which ends when all workers are done."""

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self._start


# The strategy connects on the first order, because all servers are up by then.
stock = functools.cache(Stock)


def handle(message: dict) -> dict:
    run = {"custom": stock().custom, "fit": stock().fit}[message["settings"]["loop"]]
    warmup, steps = WORKERS * message["warmup"], WORKERS * message["steps"]
    run(warmup)
    lines.mark()
    seconds = run(steps)
    lines.mark()
    return {
        "seconds": seconds,
        "steps": steps,
        "parameters": stock().model.count_params(),
    }


if __name__ == "__main__":
    lines.serve(handle)
