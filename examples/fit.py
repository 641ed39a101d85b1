"""Trains a Keras model on a cluster of 2 workers and 2 parameter servers in one process.

Run it with `python examples/fit.py`.
"""

import pathlib
import tempfile

import keras
import numpy as np

import tfps


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4096, 16)).astype("float32")
    y = x[:, :1] * x[:, 1:2] + x[:, 2:3]

    keras.utils.set_random_seed(0)
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=2, ps=2))
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input([16]), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(1)]
        )
        # A worker takes 8 steps in a call, so it asks the chief for work once in 8 steps.
        model.compile(keras.optimizers.Adam(1e-2), loss="mse", steps_per_execution=8)

    trainer = tfps.Trainer(model, strategy)
    history = trainer.fit(x, y, batch_size=32, epochs=4, verbose=0).history

    print(strategy.placement())
    for epoch, (loss, staleness) in enumerate(
        zip(history["loss"], trainer.stats["staleness"], strict=True), start=1
    ):
        print(f"epoch {epoch}: loss {loss:.3f}, a gradient missed {staleness:.2f} updates")

    # Outside of `fit` the model is an ordinary Keras model. It is saved and loaded as one.
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.keras"
        model.save(file)
        plain = keras.models.load_model(file, compile=False)
    here, there = trainer.predict(x[:3], verbose=0), plain(x[:3]).numpy()
    print(f"predictions of the cluster: {here.ravel().round(3)}, wanted {y[:3].ravel().round(3)}")
    print(f"predictions of plain Keras: {there.ravel().round(3)}")


if __name__ == "__main__":
    main()
