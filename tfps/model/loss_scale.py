"""The dynamic loss scale of mixed float16 training, on the servers."""

import keras
import tensorflow as tf


class LossScale:
    """The dynamic loss scale of mixed float16 training, shared by all workers.

    In Keras the optimizer keeps the scale, finds overflows and skips the update. Here each server
    sees only its part of the gradients, so the worker looks for overflows and tells the servers
    with its push. The scale itself lives on the first ps.

    Attributes:
      variables: [float32 scalar scale, int32 scalar count of steps without overflow].
    """

    def __init__(self, optimizer: keras.optimizers.LossScaleOptimizer):
        """Creates the variables on the current device."""
        scale = optimizer.initial_scale
        self._growth_steps = optimizer.dynamic_growth_steps
        self.variables = [
            tf.Variable(float(scale), dtype=tf.float32, trainable=False, name="loss_scale"),
            tf.Variable(0, dtype=tf.int32, trainable=False, name="good_steps"),
        ]

    def update(
        self, scale: tf.Tensor, good_steps: tf.Tensor, used: tf.Tensor, finite: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the next (scale, good_steps) after a push.

        Args:
          scale, good_steps: the present values of `variables`.
          used: float32 scalar, the scale with which the worker computed.
          finite: bool scalar, whether the worker's gradients were all finite.
        """
        grow = tf.equal(good_steps + 1, self._growth_steps)
        good = (tf.where(grow, scale * 2, scale), tf.where(grow, 0, good_steps + 1))
        # If several workers overflowed at one scale, the first push halves the scale.
        bad = (tf.where(tf.equal(scale, used), scale / 2, scale), tf.zeros_like(good_steps))
        return tf.where(finite, good[0], bad[0]), tf.where(finite, good[1], bad[1])
