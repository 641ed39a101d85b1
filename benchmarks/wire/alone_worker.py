"""Plain Keras on a worker's host, with nobody to talk to: what no network can make faster."""

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
    model().fit(batches(), steps_per_epoch=message["warmup"], verbose=0)
    lines.mark()
    start = time.perf_counter()
    model().fit(batches(), steps_per_epoch=message["steps"], verbose=0)
    seconds = time.perf_counter() - start
    lines.mark()
    return {
        "seconds": seconds,
        "steps": message["steps"],
        "parameters": model().count_params(),
    }


if __name__ == "__main__":
    lines.serve(handle)
