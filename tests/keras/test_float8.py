"""Training in float8, where the gradient of a scale is the scale's new value."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import regression


class OwnStep(keras.Sequential):
    """The guide's `train_step`."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            metric.update_state(loss)
        return {m.name: m.result() for m in self.metrics}


def quantized(cls: type[keras.Sequential]) -> keras.Sequential:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)]
    model = cls([keras.Input([8]), *layers])
    model.quantize("float8")
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    return model


def assert_alike(mine: keras.Model, theirs: keras.Model) -> None:
    pairs = [*zip(mine.weights, theirs.weights, strict=True)]
    pairs += zip(mine.optimizer.variables, theirs.optimizer.variables, strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cls", [keras.Sequential, OwnStep])
def test_scales_take_their_gradients_as_in_keras(connect, cls):
    x, y = regression(64)
    args = {"batch_size": 16, "shuffle": False, "verbose": 0}
    mine, theirs = quantized(cls), quantized(cls)
    trainer = tfps.Trainer(mine, connect())
    trainer.fit(x, y, epochs=2, **args)
    theirs.fit(x, y, epochs=2, **args)
    assert_alike(mine, theirs)
    # What is left in the model goes on in plain Keras.
    mine.fit(x, y, **args)
    theirs.fit(x, y, **args)
    assert_alike(mine, theirs)
