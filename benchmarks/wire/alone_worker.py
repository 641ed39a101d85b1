"""Plain Keras on a worker's host without a network: the bound on every system's speed."""

import functools
import os

import keras
import tensorflow as tf

from benchmarks import fit_clock
from benchmarks.wire import data, lines, model_keras

RANK = int(os.environ["RANK"])


@functools.cache
def model() -> keras.Model:
    return model_keras.keras3()


@functools.cache
def batches() -> tf.data.Dataset:
    return data.dataset(RANK)


def handle(message: dict) -> dict:
    timed = fit_clock.timed(functools.partial(model().fit, batches()), message)
    return {**timed, "parameters": model().count_params()}


if __name__ == "__main__":
    lines.serve(handle)
