"""tfps: the chief. Each setting has a Trainer of its own on one strategy, kept between turns."""

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
    """When each step was done, counted over all workers."""

    reads_weights = False  # Or the trainer would fetch them after every step.

    def __init__(self, first: int, last: int):
        """Also marks when `first` and `last` steps were done."""
        super().__init__()
        self._marks = (first, last)
        self.times: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        del batch, logs
        self.times.append(time.perf_counter())
        if len(self.times) in self._marks:
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
        model_keras.keras3(),
        strategy,
        push=tfps.compression.parse(settings["push"]),
        pull=tfps.compression.parse(settings["pull"]),
        overlap=settings["overlap"],
    )


def dataset_fn(context) -> tf.data.Dataset:
    return data.dataset(context.worker_index)


def handle(message: dict) -> dict:
    """One call of `fit`, timed from the end of its warm-up.

    With steps that overlap, a clock that ran to the last step would count steps
    that were begun before it started, and ones with no successor beside them. So
    as many more steps as overlap are taken before and after: wherever the clock
    starts and stops, as many are under way.
    """
    turn = trainer(json.dumps(message["settings"]))
    around = message["settings"]["overlap"]
    first = WORKERS * (message["warmup"] + around)
    last = first + WORKERS * message["steps"]
    steps = last + WORKERS * around
    clock = Clock(first, last)
    history = turn.fit(dataset_fn, steps_per_epoch=steps, callbacks=[clock], verbose=0).history
    return {
        "seconds": clock.times[last - 1] - clock.times[first - 1],
        "steps": last - first,
        "parameters": turn.model.count_params(),
        "predicted_up": history.get("push_bytes_per_step", [None])[-1],
        "predicted_down": history.get("pull_bytes_per_step", [None])[-1],
    }


if __name__ == "__main__":
    lines.serve(handle)
