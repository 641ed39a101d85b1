"""A worker with several devices: what they have of state that is not trained, and of randomness."""

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import mlp, regression
from tests.training.devices import assert_as_one, compiled


class State(keras.layers.Layer):
    """Counts batches and examples, keeps a mean and what only the first device has."""

    def build(self, shape):
        def variable(dtype, **arguments):
            return self.add_weight(
                shape=(), dtype=dtype, initializer="zeros", trainable=False, **arguments
            )

        self.batches, self.examples = variable("int32"), variable("int32")
        self.total = variable("float32", aggregation="sum")
        self.mean = variable("float32")

    def call(self, x, training=False):
        if training:
            ops = keras.ops
            self.batches.assign_add(1)
            self.examples.assign_add(ops.shape(x)[0])
            self.total.assign_add(ops.sum(x))
            self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x))
        return x


@pytest.mark.parametrize("jit_compile", [pytest.param(False, marks=pytest.mark.soak), True])
def test_state_that_is_not_trained(connect, jit_compile):
    x, y = regression(100)

    def make():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input([8]), State(), keras.layers.Dense(1)])
        return compiled(model, keras.optimizers.SGD(0.1), jit_compile=jit_compile)

    assert_as_one(connect, make, x, y)


def test_batch_norm_normalizes_by_device(connect):
    """The moving mean is that of one device; the variance is within the devices' parts."""
    x, y = regression(33)
    models = [compiled(mlp(batch_norm=True), keras.optimizers.SGD(0.0)) for _ in range(2)]
    for model, devices in zip(models, (1, 3), strict=True):
        strategy = connect(1, 2, cpu_devices=3)
        tfps.Trainer(model, strategy, devices_per_worker=devices).fit(
            x, y, batch_size=33, shuffle=False, verbose=0
        )
    one, several = (model.layers[1] for model in models)
    np.testing.assert_allclose(several.moving_mean, one.moving_mean, rtol=1e-5, atol=1e-7)
    hidden = np.asarray(models[0].layers[0](x))
    within = np.mean([np.var(part, 0) for part in np.split(hidden, 3)], 0)
    np.testing.assert_allclose(several.moving_variance, 0.9 + 0.1 * within, rtol=1e-5)


class Noise(keras.layers.Layer):
    """Writes down what dropout drew for each example."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)
        self.unused = self.add_weight(shape=(1,))

    def call(self, x, training=False):
        return self.dropout(keras.ops.ones_like(x), training=True)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_devices_draw_different_numbers(connect, jit_compile):
    model = keras.Sequential([keras.Input([200]), Noise()])
    compiled(model, jit_compile=jit_compile)
    trainer = tfps.Trainer(model, connect(1, 2, cpu_devices=3), devices_per_worker=3)
    drawn = trainer.predict(np.ones([6, 200], np.float32), batch_size=6, verbose=0)
    first, second, third = np.split(drawn, 3)
    assert 0.3 < np.mean(drawn == 0) < 0.7
    for a, b in ((first, second), (second, third), (first, third)):
        assert not np.array_equal(a, b)


def test_states_of_the_batchs_shape(connect):
    model = keras.Sequential(
        [keras.Input(batch_shape=[6, 4, 2]), keras.layers.LSTM(3, stateful=True)]
    )
    trainer = tfps.Trainer(compiled(model), connect(1, 2, cpu_devices=3), devices_per_worker=2)
    with pytest.raises(tfps.ConfigError, match="devices_per_worker=1"):
        trainer.fit(np.zeros([6, 4, 2]), np.zeros([6, 3]), batch_size=6, verbose=0)
