"""Schedules and optimizers that only plain Keras's `save` would ask for a `get_config`."""

import keras
import numpy as np
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


class Shaped(keras.optimizers.Optimizer):
    """SGD with momenta whose settings are of many kinds; has no `get_config`."""

    def __init__(
        self,
        learning_rate=0.01,
        betas=(0.9, 0.999),
        scales=(),
        power=None,
        offset=0.0,
        shift=0.0,
        names=None,
        decay=None,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        self.betas, self.scales, self.power = betas, list(scales), power
        self.offset, self.shift, self.names = offset, shift, names or {"kernel": [1.0, 1.0]}
        self.decay = decay

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momenta = [self.add_optimizer_variables(variables, f"m{k}") for k in range(2)]

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        if self.decay is not None:
            rate = rate * self.decay(self.iterations)
        factor, power = self.names["kernel"]
        total = factor * ops.sign(gradient) * ops.abs(gradient) ** power
        if self.power is not None:
            total = self.power(total)
        total = total + ops.sum(ops.convert_to_tensor(self.offset)) + self.shift
        for k, beta in enumerate(self.betas):
            m = self.momenta[k][self._get_variable_index(variable)]
            self.assign(m, beta * m + total * self.scales[k])
            self.assign_sub(variable, rate * m)


def test_settings_of_all_kinds_reach_the_servers(connect):
    def make():
        return Shaped(
            0.01,
            betas=(0.5, 0.7),
            scales=[0.5, 1.5],
            power=lambda x: 1.5 * x,
            offset=np.array([0.01, 0.02], "float32"),
            shift=np.float32(0.01),
            names={"kernel": [0.8, 1.1]},
            decay=Warmup(0.5, 5),
        )

    x, y = regression(64)
    trainer, reference = both(connect(ps=2), mlp, optimizer=make())
    reference.compile(make(), "mse")
    assert_alike(trainer, reference, x, y)
    assert_alike(trainer, reference, x, y)


def test_an_optimizer_whose_init_takes_nothing(connect):
    class Halved(keras.optimizers.Adam):
        def __init__(self):
            super().__init__(1e-2, beta_1=0.5, weight_decay=0.1, clipnorm=0.5)
            self.halves = {"rate": 0.5}

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate * self.halves["rate"])

    x, y = regression(64)
    trainer, reference = both(connect(ps=2), mlp, optimizer=Halved())
    reference.compile(Halved(), "mse")
    assert_alike(trainer, reference, x, y)
    assert trainer.model.optimizer.beta_1 == 0.5


def test_an_optimizer_whose_config_lacks_what_it_requires(connect):
    class Scaled(keras.optimizers.SGD):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(self.factor.apply(gradient), variable, learning_rate)

    class Factor:
        def apply(self, gradient):
            return 2.0 * gradient

    x, y = regression(64)
    trainer, reference = both(connect(), mlp, optimizer=Scaled(Factor(), learning_rate=0.1))
    reference.compile(Scaled(Factor(), learning_rate=0.1), "mse")
    assert_alike(trainer, reference, x, y)


def test_an_optimizer_whose_init_makes_state(connect):
    class Counting(keras.optimizers.SGD):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.total = self.add_variable((), name="total")

    x, y = regression(64)
    trainer, _ = both(connect(), mlp, optimizer=Counting(2.0, learning_rate=0.1))
    with pytest.raises(tfps.errors.ConfigError, match=r"\(total\); make the state in build"):
        trainer.fit(x, y, verbose=0)
