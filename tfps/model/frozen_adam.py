"""Adam with second moments that no longer change, so that its update is linear in the gradient."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from tfps import _keras_optimizers

_ADAMS = frozenset({keras.optimizers.Adam, keras.optimizers.AdamW})


class Frozen(NamedTuple):
    """Which second moments of an Adam are frozen, and since when (1-bit Adam's warm-up).

    Attributes:
      variables: per variable of the optimizer, whether its second moments are frozen.
      after: number of pushes that were applied before the second moments were frozen.
    """

    variables: Sequence[bool]
    after: int


def can_freeze(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimizer has second moments that `Freezable` can freeze."""
    return type(optimizer) in _ADAMS and not optimizer.amsgrad


class Freezable:
    """A mixin that comes before Adam or AdamW in the order of base classes.

    Tang et al., "1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence
    Speed" (2021): error feedback sends rough gradients, or sums of gradients every now and then,
    whose squares say nothing about the squares of gradients. So second moments are frozen after a
    warm-up, and Adam becomes momentum with a fixed rate for each element.

    Attributes:
      frozen: `id`s of the variables whose second moments are frozen.
      frozen_at: number of updates before the second moments were frozen, for the correction of
        their bias.
    """

    frozen: frozenset[int] = frozenset()
    frozen_at: int = 0

    # Of Adam.
    iterations: Any
    beta_1: float
    beta_2: float
    epsilon: float

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates one variable; see `keras.optimizers.Optimizer.update_step`."""
        if id(variable) not in self.frozen:
            super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
            return
        gradient = ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype)
        correction = 1 - self.beta_2**self.frozen_at
        momentum, squares = _keras_optimizers.adam_moments(self, variable)
        # An element that had no gradient before the freeze takes the scale of its first gradient.
        # Otherwise its update would be divided by epsilon.
        squares.assign(ops.where(squares > 0, squares, correction * ops.square(gradient)))
        momentum.assign(self.beta_1 * momentum + (1 - self.beta_1) * gradient)
        rate = rate * correction**0.5 / (1 - ops.power(self.beta_1, step))
        variable.assign(variable - rate * momentum / (ops.sqrt(squares) + self.epsilon))
