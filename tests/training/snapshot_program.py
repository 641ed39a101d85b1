"""A program with snapshots, to be killed: one weight, from which batch i takes 2^i.

Arguments: folder, file to which the result goes, seconds between snapshots, MB of ballast.
"""

import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import tfps
from tfps import exit_codes

BATCHES, EPOCHS = 20, 4


class Slow(keras.callbacks.Callback):
    """Gives whoever kills this program the time to do so."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.02)

    def on_train_begin(self, logs=None):
        print("trains", flush=True)


def main(folder, result, every, ballast):
    inputs = keras.Input([1])
    taken = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(inputs)
    model = keras.Model(inputs, taken)
    # Weights that no step changes make a snapshot take its time.
    model.ballast = model.add_weight(
        shape=(int(float(ballast) * 250_000),), initializer="ones", trainable=False, name="ballast"
    )
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: p, jit_compile=False)
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=1, ps=2))
    snapshots = tfps.Snapshots(folder, every=float(every))
    trainer = tfps.Trainer(model, strategy, snapshots=snapshots)
    x = np.exp2(np.arange(BATCHES, dtype=np.float32) % 10)[:, None]
    with exit_codes.on_sigterm():
        data = tf.data.Dataset.from_tensor_slices((x, x)).batch(1)
        history = trainer.fit(data, epochs=EPOCHS, verbose=0, callbacks=[Slow()])
    weight = float(model.trainable_weights[0].numpy()[0, 0])
    pathlib.Path(result).write_text(f"{weight} {history.epoch} {int(model.optimizer.iterations)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
