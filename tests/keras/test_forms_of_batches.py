"""Forms in which single batches may come, beside Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import regression
from tests.keras.test_single_batches import pair


def compare(trainer, reference, x, y, **weights):
    for _ in range(2):
        both = [one.train_on_batch(x, y, **weights) for one in (trainer, reference)]
        np.testing.assert_allclose(*both, rtol=1e-5)
    both = [one.test_on_batch(x, y, **weights) for one in (trainer, reference)]
    np.testing.assert_allclose(*both, rtol=1e-5)
    mine, theirs = (one.predict_on_batch(x) for one in (trainer, reference))
    for a, b in zip(*map(keras.tree.flatten, (mine, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["<U3", "object", "tensor"])
def test_strings(connect, form):
    def make():
        lookup = keras.layers.StringLookup(vocabulary=["a", "bb", "ccc"])
        inputs = keras.Input([2], dtype="string")
        x = keras.layers.Embedding(4, 3)(lookup(inputs))
        return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x)))

    # Adam would take other steps for ids that a batch repeats.
    trainer, reference = pair(connect(), make, optimizer=lambda: keras.optimizers.SGD(0.1))
    words = np.array([["a", "bb"], ["ccc", "a"], ["x", "bb"], ["a", "a"]])
    x = tf.constant(words) if form == "tensor" else words.astype(form)
    compare(trainer, reference, x, np.ones([4, 1], "float32"))


def test_frames(connect):
    pandas = pytest.importorskip("pandas")
    x, y = regression(16)
    trainer, reference = pair(connect())
    frame, series = pandas.DataFrame(x), pandas.Series(y[:, 0])
    compare(trainer, reference, frame, series, sample_weight=series * 2)


@pytest.mark.parametrize("weight", [0.5, np.float32(2.0), tf.constant(3.0)])
def test_one_weight_for_all(connect, weight):
    x, y = regression(16)
    compare(*pair(connect()), x, y, sample_weight=weight)


def test_weights_of_several_outputs(connect):
    def make():
        inputs = keras.Input([8])
        outputs = {n: keras.layers.Dense(1, name=n)(inputs) for n in ("a", "b")}
        return keras.Model(inputs, outputs)

    x, y = regression(16)
    weights = {"a": 2.0, "b": np.linspace(0, 1, 16, dtype="float32")}
    trainer, reference = pair(connect(), make, metrics={"a": ["mae"], "b": ["mse"]})
    compare(trainer, reference, x, {"a": y, "b": 2 * y}, sample_weight=weights)


def test_numbers_of_other_kinds(connect):
    x, y = regression(16)
    trainer, reference = pair(connect())
    compare(trainer, reference, x.astype("float64"), y.astype("int64"))
