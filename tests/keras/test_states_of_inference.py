"""Variables that evaluation and prediction assign, beside plain Keras."""

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import regression

ARGS = {"batch_size": 8, "verbose": 0}


class Box:
    """Holds what Keras does not track."""

    def __init__(self):
        self.tests = keras.Variable(0.0, trainable=False)
        self.trained = keras.Variable(0.0, trainable=False)


class Counting(keras.Sequential):
    """Counts its own steps in variables that it does not list."""

    def __init__(self, box):
        super().__init__([keras.Input([8]), keras.layers.Dense(1)])
        vars(self)["box"] = box

    def test_step(self, data):
        self.box.tests.assign(self.box.tests + 1)
        return super().test_step(data)

    def train_step(self, data):
        self.box.trained.assign(self.box.trained + 1)
        return super().train_step(data)


@pytest.mark.parametrize("first", ["predict", "fit"])
def test_unlisted_states_that_only_a_later_step_assigns(connect, first):
    x, y = regression(32)
    strategy, counts = connect(), []
    for run in ("tfps", "keras"):
        keras.utils.set_random_seed(1)
        model = Counting(Box())
        model.compile("sgd", "mse")
        one = tfps.Trainer(model, strategy) if run == "tfps" else model
        if first == "fit":
            one.fit(x, y, epochs=2, **ARGS)
        else:
            one.predict(x, **ARGS)
        one.evaluate(x, y, **ARGS)
        one.evaluate(x, y, **ARGS)
        one.fit(x, y, validation_data=(x, y), **ARGS)
        counts.append([float(model.box.tests), float(model.box.trained)])
    assert counts[0] == counts[1]


class Total(keras.layers.Layer):
    """The guide's layer with a state: it adds up all that it is called with."""

    def __init__(self):
        super().__init__()
        self.total = self.add_weight(shape=[8], initializer="zeros", trainable=False)

    def call(self, x):
        self.total.assign(self.total + keras.ops.sum(x, axis=0))
        return x


def test_a_weight_that_inference_assigns_is_warned_of(connect):
    x, y = regression(32)
    model = keras.Sequential([keras.Input([8]), Total(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect())
    trainer.fit(x, y, **ARGS)
    total = model.layers[0].total.numpy()
    np.testing.assert_allclose(total, x.sum(axis=0), rtol=1e-4)
    with pytest.warns(UserWarning, match="assigns .*in an evaluation or prediction"):
        trainer.predict(x, **ARGS)
    np.testing.assert_array_equal(model.layers[0].total.numpy(), total)


def test_a_program_has_the_numbers_of_random_that_it_has_without(connect):
    import random

    x, y = regression(16)
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    keras.utils.set_random_seed(3)
    expected = [random.random() for _ in range(3)]
    keras.utils.set_random_seed(3)
    tfps.Trainer(model, connect()).fit(x, y, **ARGS)
    assert [random.random() for _ in range(3)] == expected
