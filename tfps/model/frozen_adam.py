"""Adam whose second moments stay as they are, so that its update is linear in the gradient."""

import keras
from keras import ops

from tfps import _keras

_ADAMS = frozenset({keras.optimizers.Adam, keras.optimizers.AdamW})


def can_freeze(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether this optimizer has second moments that `Freezable` can leave as they are."""
    return type(optimizer) in _ADAMS and not optimizer.amsgrad


class Freezable:
    """Mixed in before Adam or AdamW.

    Tang et al., "1-bit Adam: Communication Efficient Large-Scale Training with
    Adam's Convergence Speed" (2021): what error feedback sends is a sum of
    gradients now and then, or a rough one, whose squares say nothing about the
    squares of gradients. After a warm-up they are not updated any more, and Adam
    is momentum with a fixed rate for each element.

    Attributes:
      frozen: ids of the variables whose second moments stay.
      frozen_at: updates after which they were left, for the correction of their bias.
    """

    frozen: frozenset = frozenset()
    frozen_at: int = 0

    def update_step(self, gradient, variable, learning_rate):
        if id(variable) not in self.frozen:
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype)
        correction = 1 - self.beta_2**self.frozen_at
        momentum, squares = _keras.adam_moments(self, variable)
        # An element without a gradient until now takes the scale of its first one, or
        # it would be divided by epsilon.
        squares.assign(ops.where(squares > 0, squares, correction * ops.square(gradient)))
        momentum.assign(self.beta_1 * momentum + (1 - self.beta_1) * gradient)
        rate = rate * correction**0.5 / (1 - ops.power(self.beta_1, step))
        variable.assign(variable - rate * momentum / (ops.sqrt(squares) + self.epsilon))
