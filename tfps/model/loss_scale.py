"""The dynamic loss scale of mixed float16 training, on the servers."""

import keras
import tensorflow as tf


class LossScale:
    """The dynamic loss scale of mixed float16 training, shared by all workers.

    Keras lets the optimizer keep it, find overflows and skip the update. Here
    each server sees only its part of the gradients, so the worker looks for
    overflows and says so with its push; the scale itself lives on the first ps.

    Attributes:
      variables: [float32 scalar scale, int32 scalar count of good steps].
    """

    def __init__(self, optimizer: keras.optimizers.LossScaleOptimizer):
        scale = optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale
        self._growth_steps = optimizer.dynamic_growth_steps
        self.variables = [
            tf.Variable(float(scale), dtype=tf.float32, trainable=False, name="loss_scale"),
            tf.Variable(0, dtype=tf.int32, trainable=False, name="good_steps"),
        ]

    def update(self, scale, good_steps, used, finite):
        """The next (scale, good_steps) after a push.

        Args:
          scale, good_steps: the present values.
          used: the scale with which the worker computed.
          finite: bool, whether its gradients were all finite.
        """
        grow = tf.equal(good_steps + 1, self._growth_steps)
        good = (tf.where(grow, scale * 2, scale), tf.where(grow, 0, good_steps + 1))
        # Of several workers that overflowed at one scale, the first halves it.
        bad = (tf.where(tf.equal(scale, used), scale / 2, scale), tf.zeros_like(good_steps))
        return tf.where(finite, good[0], bad[0]), tf.where(finite, good[1], bad[1])
