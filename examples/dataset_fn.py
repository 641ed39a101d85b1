"""Lets each worker read files of its own, in place of batches that the chief deals out.

Run it with `python examples/dataset_fn.py`.
"""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

import tfps

FILES, LINES = 4, 256


def write_files(folder: pathlib.Path) -> list[str]:
    """CSV files of lines `a,b,2a-b`."""
    rng = np.random.default_rng(0)
    for i in range(FILES):
        a, b = rng.normal(size=(2, LINES))
        np.savetxt(folder / f"part-{i}.csv", np.stack([a, b, 2 * a - b], axis=1), delimiter=",")
    return sorted(str(path) for path in folder.glob("*.csv"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(pathlib.Path(folder))
        strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=2, ps=1))

        def dataset_fn(context: tfps.Context) -> tf.data.Dataset:
            """Called once for each worker; the dataset is read on that worker's machine."""
            mine = context.shard(files)
            names = ", ".join(pathlib.Path(name).name for name in mine)
            print(f"worker {context.worker_index} of {context.num_workers} reads {names}")

            def columns(line):
                a, b, target = tf.io.decode_csv(line, [0.0] * 3)
                return tf.stack([a, b]), target

            lines = tf.data.TextLineDataset(mine).shuffle(LINES, seed=context.worker_index)
            return lines.map(columns).batch(16)

        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.05), loss="mse")
        trainer = tfps.Trainer(model, strategy)
        # Without `steps_per_epoch`, an epoch is one pass of each worker over its files.
        history = trainer.fit(dataset_fn, epochs=3, verbose=0).history
        print("loss of each epoch: " + ", ".join(f"{loss:.4f}" for loss in history["loss"]))
        print(f"{model.optimizer.iterations.numpy()} updates for {FILES * LINES} lines, 3 times")
        print(f"weights learned: {model.get_weights()[0].ravel().round(2)}; true ones: 2, -1")


if __name__ == "__main__":
    main()
