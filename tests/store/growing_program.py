"""A program with snapshots of a table that grows, to be killed.

Arguments: folder, file to which the result goes, seconds between snapshots, MB of ballast.
"""

import pathlib
import sys

import keras
import numpy as np

import tfps
from tests.training.snapshot_program import Slow
from tfps import exit_codes

BATCHES, EPOCHS = 40, 3


def main(folder, result, every, ballast):
    ids = keras.Input([8], dtype="int64")
    layer = tfps.layers.HashEmbedding(4, expected=200, seed=1)
    model = keras.Model(ids, layer(ids))
    # Weights that no step changes make a snapshot take its time.
    model.ballast = model.add_weight(
        shape=(int(float(ballast) * 250_000),), initializer="ones", trainable=False, name="ballast"
    )
    model.compile(keras.optimizers.Adagrad(0.5), loss=lambda y, p: (p - y) ** 2, jit_compile=False)
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=1, ps=2))
    snapshots = tfps.Snapshots(folder, every=float(every))
    trainer = tfps.Trainer(model, strategy, snapshots=snapshots)
    # Ids come along all the time, and some of them again.
    x = np.arange(BATCHES * 8).reshape(BATCHES, 8) * 2 // 3 * 977
    with exit_codes.on_sigterm():
        trainer.fit(
            x,
            np.sin(x)[..., None].repeat(4, 2).astype(np.float32),
            batch_size=1,
            shuffle=False,
            epochs=EPOCHS,
            verbose=0,
            callbacks=[Slow()],
        )
    keys = layer.local.keys()
    order = np.argsort(keys.keys)
    rows = layer.embeddings.numpy()[keys.slots[order]]
    held = [keys.keys[order], keys.counts[order], rows]
    pathlib.Path(result).write_text(str([one.tolist() for one in held]))


if __name__ == "__main__":
    main(*sys.argv[1:])
