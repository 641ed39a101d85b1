"""Leases files to whichever worker is free, and validates on each fold of the files in turn.

Run it with `python examples/splits.py`.
"""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

import tfps

FILES, LINES = 8, 128


def write_files(folder: pathlib.Path) -> list[str]:
    """CSV files of lines `a,b,2a-b`."""
    rng = np.random.default_rng(0)
    for i in range(FILES):
        a, b = rng.normal(size=(2, LINES))
        np.savetxt(folder / f"part-{i}.csv", np.stack([a, b, 2 * a - b], axis=1), delimiter=",")
    return sorted(str(path) for path in folder.glob("*.csv"))


def read(name: str) -> tf.data.Dataset:
    """The batches of a file; called when a worker is about to read it."""

    def columns(line):
        a, b, target = tf.io.decode_csv(line, [0.0] * 3)
        return tf.stack([a, b]), target

    return tf.data.TextLineDataset(name).shuffle(LINES).map(columns).batch(16)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(pathlib.Path(folder))
        strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=2, ps=1))
        for fold, (train, validate) in enumerate(tfps.data.kfold(files, 2, seed=0)):
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
            model.compile(keras.optimizers.SGD(0.05), loss="mse")
            trainer = tfps.Trainer(model, strategy)
            trainer.fit(tfps.data.Splits(train, read), epochs=3, verbose=0)
            loss = trainer.evaluate(tfps.data.Splits(validate, read), verbose=0)
            names = ", ".join(pathlib.Path(name).name for name in validate)
            updates = model.optimizer.iterations.numpy()
            print(f"fold {fold}: {updates} updates; loss of {names}: {loss:.6f}")


if __name__ == "__main__":
    main()
