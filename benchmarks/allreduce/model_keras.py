"""The models in Keras, and their batches as datasets."""

import keras
import numpy as np
import tensorflow as tf

from benchmarks.allreduce import networks
from benchmarks.allreduce.networks import LEARNING_RATE, NETWORKS


def build(name: str, steps_per_execution: int = 1) -> keras.Model:
    """The network of that name in `NETWORKS`, compiled, with the first weights."""
    network = NETWORKS[name]
    layers: list[keras.Layer] = []
    if network.rows:
        layers = [
            keras.Input([network.inputs], dtype="int32"),
            keras.layers.Embedding(network.rows, network.width),
            keras.layers.Flatten(),
        ]
    else:
        layers = [keras.Input([network.inputs])]
    for units in network.units[:-1]:
        layers.append(keras.layers.Dense(units, activation="relu"))
    layers.append(keras.layers.Dense(network.units[-1]))
    model = keras.Sequential(layers)
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE), "mse", steps_per_execution=steps_per_execution
    )
    model.set_weights(networks.weights(network))
    return model


def dataset(arrays: tuple[np.ndarray, np.ndarray]) -> tf.data.Dataset:
    """Endless batches from arrays [batches, batch, …]."""
    return tf.data.Dataset.from_tensor_slices(arrays).repeat().prefetch(2)
