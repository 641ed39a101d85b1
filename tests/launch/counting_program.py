"""A job as users write them, which counts on the servers how often it trains on each record.

It trains until somebody makes the file `enough` in the working folder.
"""

import os
import time

import keras
import numpy as np
import tensorflow as tf

from models import task

RECORDS = 60


@keras.saving.register_keras_serializable("tests")
class Counting(keras.layers.Layer):
    """Its output is one number, which is trained to be 1."""

    def build(self, shape):
        self.counts = self.add_weight(
            name="counts", shape=(RECORDS,), dtype="int32", initializer="zeros", trainable=False
        )
        self.w = self.add_weight(name="w", shape=(3000,), initializer="zeros")

    def call(self, x, training=False):
        if training:
            ids = tf.cast(x, "int32")
            one = tf.ones_like(ids[:, 0])
            self.counts.assign(tf.tensor_scatter_nd_add(self.counts, ids, one))
        return tf.reduce_sum(self.w[:1]) + 0 * x


class UntilEnough(keras.callbacks.Callback):
    """Tells of each epoch, which takes half a second at least."""

    def on_epoch_end(self, epoch, logs=None):
        print(f"epoch {epoch} has ended", flush=True)
        time.sleep(0.5)
        self.model.stop_training = os.path.exists("enough")


def train(connect):
    way = connect()
    with way.scope():
        layer = Counting()
        model = keras.Sequential([keras.Input([1]), layer])
        model.compile(keras.optimizers.SGD(0.01, momentum=0.5), "mse", metrics=["mae"])
    ids = np.arange(RECORDS, dtype=np.float32)[:, None]
    ones = np.ones_like(ids)
    history = way.trainer(model).fit(
        ids,
        ones,
        batch_size=4,
        epochs=100_000,
        validation_data=(ids, ones),
        callbacks=[UntilEnough()],
        verbose=0,
    )
    if way.chief:
        counts = np.asarray(layer.counts)
        epochs = history.epoch
        assert epochs == list(range(len(epochs))), epochs
        print(
            f"each record {counts.min()} to {counts.max()} times in {len(epochs)} epochs, "
            f"{int(model.optimizer.iterations)} updates",
            flush=True,
        )
    else:
        np.save("evaluated.npy", history.history["val_loss"])


if __name__ == "__main__":
    task.main(lambda argv: task.run(train))
