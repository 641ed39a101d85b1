"""The chief of tfps. Each setting has its own Trainer on one strategy, kept between turns."""

import functools
import json
import time

import keras
import tensorflow as tf

import tfps
from benchmarks.wire import data, lines, model_keras
from benchmarks.wire.sizes import WORKERS

STARTUP_TIMEOUT = 180.0  # s; the servers' processes may still be importing TensorFlow


class Clock(keras.callbacks.Callback):
    """Notes the times at which some steps were done, counted over all workers."""

    def __init__(self, first: int, last: int):
        """Marks when `first` and `last` steps were done."""
        super().__init__()
        self._to_come = [first, last]
        self.marks: list[tuple[int, float]] = []

    def on_train_batch_end(self, batch, logs=None):
        del logs
        if self._to_come and batch + 1 >= self._to_come[0]:
            del self._to_come[0]
            self.marks.append((batch + 1, time.perf_counter()))
            lines.mark()


@functools.cache
def connected() -> tfps.ParameterServerStrategy:
    return tfps.ParameterServerStrategy(
        tfps.Cluster.from_env(),
        variable_partitioner=tfps.partitioners.Balanced(),
        startup_timeout=STARTUP_TIMEOUT,
    )


@functools.cache
def trainer(settings: str) -> tfps.Trainer:
    settings = json.loads(settings)
    strategy = connected()
    return tfps.Trainer(
        model_keras.keras3(settings["xla"], settings.get("computes", True)),
        strategy,
        tfps.consistency.parse(settings.get("consistency", "async")),
        push=tfps.compression.parse(settings["push"]),
        pull=tfps.compression.parse(settings["pull"]),
        overlap=settings["overlap"],
        sparse_updates=settings["sparse_updates"],
    )


def dataset_fn(context) -> tf.data.Dataset:
    return data.dataset(context.worker_index)


def handle(message: dict) -> dict:
    """Calls `fit` once, and times it from the end of its warm-up.

    A clock that ran to the last step would count what was begun before it started and
    has no successor beside it: steps that overlap, or parts of an exchange. So as
    many more steps as overlap, or one exchange more, are taken before and after: wherever
    the clock starts and stops, as many are under way.
    """
    turn = trainer(json.dumps(message["settings"]))
    stride = message["stride"]
    around = stride if stride > 1 else message["settings"]["overlap"]
    first = WORKERS * (message["warmup"] + around)
    last = first + WORKERS * message["steps"]
    steps = last + WORKERS * around
    clock = Clock(first, last)
    turn.fit(dataset_fn, steps_per_epoch=steps, callbacks=[clock], verbose=0)
    (begun, start), (ended, stop) = clock.marks
    return {
        "seconds": stop - start,
        "steps": ended - begun,
        "parameters": turn.model.count_params(),
        "predicted_up": turn.stats["push_bytes_per_step"][-1],
        "predicted_down": turn.stats["pull_bytes_per_step"][-1],
    }


if __name__ == "__main__":
    lines.serve(handle)
