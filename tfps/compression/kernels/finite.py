"""Keeping infinities and NaN out of residuals."""

import tensorflow as tf

_LIMIT = 2.0**127


def all_finite(tensor: tf.Tensor) -> tf.Tensor:
    """bool scalar: whether every element is finite."""
    # A finite sum proves it in one cheap pass. A sum of finite elements may overflow, so if the
    # sum is not finite, the second branch looks at every element.
    return tf.cond(
        tf.math.is_finite(tf.reduce_sum(tensor)),
        lambda: tf.constant(True),
        lambda: tf.reduce_all(tf.math.is_finite(tensor)),
    )


def bounded(tensor: tf.Tensor) -> tf.Tensor:
    """Clips a float32 tensor to +-2**127, so that sums that overflowed become finite."""
    return tf.clip_by_value(tensor, -_LIMIT, _LIMIT)
