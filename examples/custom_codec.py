"""Sends gradients as 8-bit floats, by a codec of one's own.

Run it with `python examples/custom_codec.py`.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

import tfps

FLOAT8 = tf.dtypes.experimental.float8_e4m3fn


@dataclasses.dataclass(frozen=True)
class Float8(tfps.compression.Codec):
    """A sign, 4 bits of exponent and 3 of mantissa an element, and one float32 scale a tensor.

    A codec is an immutable value. `encode` runs on the sender, `decode` on the receiver.
    """

    # What is sent differs from the gradient by more than noise. As a biased codec it gets error
    # feedback: the worker keeps what a payload left out and adds it to the next gradient.
    biased = True

    def encode(self, tensor, state, seed):
        del seed  # Rounds to nearest, so it needs no random numbers.
        scale = tf.reduce_max(tf.abs(tensor)) / FLOAT8.max + 1e-30
        return (tf.cast(tensor / scale, FLOAT8), scale), state

    def decode(self, payload, shape, dtype):
        values, scale = payload
        return tf.cast(tf.reshape(tf.cast(values, tf.float32) * scale, shape), dtype)

    def payload_bytes(self, shape, dtype):
        return math.prod(shape) + 4


def train(push: tfps.compression.Codec | None, strategy) -> dict:
    x = np.random.default_rng(0).normal(size=(2048, 32)).astype("float32")
    y = np.sin(x[:, :1]) + x[:, 1:2]
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(256, activation="tanh")
    model = keras.Sequential([keras.Input([32]), hidden, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss="mse", steps_per_execution=8)
    trainer = tfps.Trainer(model, strategy, push=push, log_stats=True)
    return trainer.fit(x, y, epochs=3, verbose=0).history


if __name__ == "__main__":
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=1, ps=1))
    for codec in (None, Float8()):
        logs = train(codec, strategy)
        size = logs["push_bytes_per_step"][-1]
        print(f"push={codec}: loss {logs['loss'][-1]:.4f}, {size:,.0f} bytes pushed in a step")
