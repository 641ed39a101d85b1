"""Trains a small model as one process of an all-reduce and writes its weights.

`python -m tests.models.allreduce_program OUT.npz --strategy=…`
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from models import allreduce

FLAGS = flags.FLAGS
REPLICAS = 2
BATCH = 8  # examples of a replica
STEPS = 50


def data():
    """(ids int32, y float32), of all replicas' batches one after another."""
    rng = np.random.default_rng(0)
    ids = rng.integers(40, size=(STEPS * REPLICAS * BATCH, 3), dtype=np.int32)
    return ids, np.sin(ids.sum(1, keepdims=True)).astype(np.float32)


def model():
    keras.utils.set_random_seed(1)
    made = keras.Sequential(
        [
            keras.Input([3], dtype="int32"),
            keras.layers.Embedding(40, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    made.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"], steps_per_execution=5)
    return made


def train(connect):
    way = connect()
    with way.scope():
        made = model()
    assert way.batches_per_step == REPLICAS
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(REPLICAS * BATCH)
    # The last batch has 12 examples, so it is uneven.
    odd = tf.data.Dataset.from_tensor_slices(tuple(a[:60] for a in data())).batch(16)
    history = way.trainer(made).fit(batches, epochs=1, validation_data=odd, verbose=0).history
    logs = [history[name][-1] for name in ("loss", "mae", "val_loss", "val_mae")]
    if way.chief:
        np.savez(out, *made.get_weights(), logs)


if __name__ == "__main__":
    out = sys.argv.pop(1)
    app.run(lambda argv: allreduce.run(train, startup_timeout=60.0))
