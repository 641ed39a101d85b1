"""State of the model to which a step only adds: concurrent workers lose nothing of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import regression, relative_error


class Counting(keras.layers.Layer):
    """Passes its input on; counts batches, adds up inputs, and follows their mean."""

    def build(self, shape):
        del shape
        self.batches = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.total = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.batches.assign_add(1.0)
            self.total.assign(self.total + keras.ops.sum(x))
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x))
        return x


class OwnStep(keras.Sequential):
    """The same by a `train_step` of its own, with a count of its own."""

    def __init__(self, layers):
        super().__init__(layers)
        self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.steps.assign_add(1.0)
        return {"loss": loss}


def made(kind=keras.Sequential):
    keras.utils.set_random_seed(1)
    model = kind([Counting(), keras.layers.Dense(1)])
    model.build((None, 8))
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    return model


@pytest.mark.parametrize("kind", [keras.Sequential, OwnStep])
def test_nothing_is_lost_among_concurrent_workers(connect, kind):
    def ones(context):
        del context
        return tf.data.Dataset.from_tensors((tf.ones([2, 8]), tf.ones([2, 1]))).repeat()

    model = made(kind)
    trainer = tfps.Trainer(model, connect(workers=4))
    trainer.fit(ones, steps_per_epoch=400, verbose=0)
    counting = model.layers[0]
    assert float(counting.batches) == 400
    assert float(counting.total) == 400 * 16
    # An average is what some worker computed, and stays in the range of averages.
    assert 0.9 < float(counting.mean) <= 1
    if kind is OwnStep:
        assert float(model.steps) == 400


def test_a_round_is_one_step_on_all_of_its_batches(connect):
    x, y = regression(64)
    ours, plain = made(), made()
    trainer = tfps.Trainer(ours, connect(workers=2), tfps.Sync())
    trainer.fit(x, y, batch_size=8, shuffle=False, epochs=2, verbose=0)
    plain.fit(x, y, batch_size=16, shuffle=False, epochs=2, verbose=0)
    assert relative_error(ours.layers[1], plain.layers[1]) < 1e-5
    assert float(ours.layers[0].batches) == float(plain.layers[0].batches) == 8
    np.testing.assert_allclose(ours.layers[0].mean, plain.layers[0].mean, rtol=1e-5)


def test_one_worker_is_plain_keras(connect):
    x, y = regression(60)
    ours, plain = made(), made()
    tfps.Trainer(ours, connect(workers=1)).fit(x, y, batch_size=8, shuffle=False, verbose=0)
    plain.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert relative_error(ours, plain) < 1e-6
    assert float(ours.layers[0].batches) == 8
    np.testing.assert_allclose(ours.layers[0].total, plain.layers[0].total, rtol=1e-6)
