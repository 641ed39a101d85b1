"""Own steps through a Trainer and by Keras, compared."""

import keras
import numpy as np

import tfps
from tests.conftest import relative_error

o = keras.optimizers


def fit_both(connect, make, *data, epochs=2, workers=1, tolerance=1e-5, **fit):
    """Trains two models alike, by a Trainer and by Keras; returns them after comparing them.

    Args:
      connect: the fixture.
      make: gives a compiled model, with the same weights each time.
      *data: arrays for `fit`.
      epochs: how many.
      workers: of the cluster.
      tolerance: relative error of weights and of the history.
      **fit: further arguments of `fit`.
    """
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0, "epochs": epochs, **fit}
    strategy, models, histories = connect(workers), [], []
    for run in ("tfps", "keras"):
        keras.utils.set_random_seed(1)
        model = make()
        train = tfps.Trainer(model, strategy).fit if run == "tfps" else model.fit
        histories.append(train(*data, **fit).history)
        models.append(model)
    mine, theirs = histories
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(mine[name], values, rtol=10 * tolerance, err_msg=name)
    assert relative_error(*models) < tolerance
    return models


def sequential(cls, optimizer=lambda: o.Adam(1e-2), **compile_args):
    """What makes a small dense network of a class, compiled, for `fit_both`."""

    def make():
        layers = [
            keras.Input([8]),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
        model = cls(layers)
        model.compile(optimizer(), "mse", **{"jit_compile": False, **compile_args})
        return model

    return make
