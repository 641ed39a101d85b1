"""Plain Keras on a worker's host without a network: the bound on every system's speed."""

import functools
import os
import time

import keras
import tensorflow as tf

from benchmarks.wire import data, lines, model_keras

RANK = int(os.environ["RANK"])


@functools.cache
def model() -> keras.Model:
    return model_keras.keras3()


@functools.cache
def batches() -> tf.data.Dataset:
    return data.dataset(RANK)


def handle(message: dict) -> dict:
    """Calls `fit` once, and times it from the end of the warm-up."""
    marks = []
    ends = (message["warmup"], message["warmup"] + message["steps"])

    def mark(batch, logs):
        del logs
        if batch + 1 in ends:
            marks.append(time.perf_counter())
            lines.mark()

    clock = keras.callbacks.LambdaCallback(on_train_batch_end=mark)
    model().fit(batches(), steps_per_epoch=ends[-1], callbacks=[clock], verbose=0)
    return {
        "seconds": marks[1] - marks[0],
        "steps": message["steps"],
        "parameters": model().count_params(),
    }


if __name__ == "__main__":
    lines.serve(handle)
