"""What a worker does with gradients before they are sent: unscale, look for overflows, clip."""

from collections.abc import Sequence

import tensorflow as tf

from tfps import _keras_optimizers
from tfps.model.optimizer_set import AnyOptimizer, OptimizerSet
from tfps.model.optimizer_traits import (
    clips_on_servers,
    is_dynamically_scaled,
    own_loss_scales,
    owned,
    static_loss_scale,
)


def unscale_and_clip(
    optimizer: AnyOptimizer,
    gradients: Sequence[tf.Tensor | None],
    scale: tf.Tensor,
) -> tuple[list[tf.Tensor | None], tf.Tensor]:
    """Unscales and clips the gradients of the whole model, which only the worker sees.

    An optimizer that accumulates gradients clips their mean, on the servers.

    Args:
      optimizer: the optimizer that the model was compiled with, or several. Each clips the
        gradients of its own variables.
      gradients: tensors, or None for a variable on which the loss does not depend.
      scale: float32 scalar by which the loss was multiplied. Without effect for a set whose
        optimizers scale the loss each by its own factor.

    Returns:
      (gradients, finite): `finite` is a bool scalar, whether no gradient overflowed. It is always
      true unless the optimizer scales the loss dynamically.
    """
    gradients = list(gradients)
    finite = tf.constant(True)
    dynamic = is_dynamically_scaled(optimizer)
    if factors := own_loss_scales(optimizer):
        gradients = [
            g if g is None or factor == 1.0 else g / tf.cast(factor, g.dtype)
            for g, factor in zip(gradients, factors, strict=True)
        ]
    elif dynamic or static_loss_scale(optimizer) != 1.0:
        gradients = [None if g is None else g / tf.cast(scale, g.dtype) for g in gradients]
    if dynamic:
        checks = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None]
        finite = tf.reduce_all(tf.stack([finite, *checks]))
    for one, mine in owned(optimizer, len(gradients)):
        if not clips_on_servers(one):
            for some in _applied_together(optimizer, mine):
                clipped = _keras_optimizers.clip_gradients(one, [gradients[i] for i in some])
                for i, gradient in zip(some, clipped, strict=True):
                    gradients[i] = gradient
    return gradients, finite


def _applied_together(optimizer: AnyOptimizer, mine: list[int]) -> list[list[int]]:
    """Trainable variables of one optimizer, grouped by the calls of `apply` that concern them."""
    if not isinstance(optimizer, OptimizerSet):
        return [mine]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in mine:
        groups.setdefault(optimizer.calls_of(i), []).append(i)
    return list(groups.values())
