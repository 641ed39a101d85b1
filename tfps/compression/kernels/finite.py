"""Keeping infinities and NaN out of what is remembered."""

import tensorflow as tf

_LIMIT = 2.0**127


def all_finite(tensor: tf.Tensor) -> tf.Tensor:
    """bool scalar: whether no element is infinite or NaN."""
    # The sum tells in one cheap pass. It may also overflow by itself: then look closely.
    return tf.cond(
        tf.math.is_finite(tf.reduce_sum(tensor)),
        lambda: tf.constant(True),
        lambda: tf.reduce_all(tf.math.is_finite(tensor)),
    )


def bounded(tensor: tf.Tensor) -> tf.Tensor:
    """float32 sums that overflowed, or nearly, as +-2**127."""
    return tf.clip_by_value(tensor, -_LIMIT, _LIMIT)
