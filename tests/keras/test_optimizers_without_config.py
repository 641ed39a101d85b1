"""Schedules and optimizers that only plain Keras's `save` would ask for a `get_config`."""

import keras
import pytest
import tensorflow as tf
from keras import ops

import tfps
from tests.conftest import mlp, regression
from tests.keras.test_programs import assert_alike, both


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Grows up to a number of steps; cannot be serialized."""

    def __init__(self, rate, steps):
        super().__init__()
        self.rate, self.steps = rate, steps

    def __call__(self, step):
        step, steps = tf.cast(step, "float32"), tf.cast(self.steps, "float32")
        return tf.cond(step < steps, lambda: self.rate * step / steps, lambda: self.rate)


class HeavyBall(keras.optimizers.Optimizer):
    """SGD with momentum, whose settings its `get_config` does not know."""

    def __init__(self, learning_rate=0.01, friction=0.9, *, power=1.0, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.friction, self._power = friction, power

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.velocities[self._get_variable_index(variable)]
        steeper = ops.sign(gradient) * ops.abs(gradient) ** self._power
        self.assign(velocity, self.friction * velocity + steeper)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * velocity)


@pytest.mark.parametrize(
    "make", [pytest.param(keras.optimizers.Adam, marks=pytest.mark.soak), HeavyBall]
)
def test_a_schedule_without_config(connect, make):
    x, y = regression(64)
    trainer, reference = both(connect(), mlp, optimizer=make(Warmup(0.02, 5)))
    reference.compile(make(Warmup(0.02, 5)), "mse")
    assert_alike(trainer, reference, x, y)


def test_an_optimizer_whose_config_lacks_its_settings(connect):
    x, y = regression(64)
    trainer, reference = both(connect(), mlp, optimizer=HeavyBall(0.01, 0.5, power=1.5))
    reference.compile(HeavyBall(0.01, 0.5, power=1.5), "mse")
    assert_alike(trainer, reference, x, y)


def test_an_optimizer_whose_config_lacks_what_it_requires(connect):
    class Scaled(keras.optimizers.SGD):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

    x, y = regression(64)
    trainer, _ = both(connect(), mlp, optimizer=Scaled(2.0, learning_rate=0.1))
    with pytest.raises(tfps.errors.ConfigError, match="let get_config return every argument"):
        trainer.fit(x, y, verbose=0)
