"""Random numbers that cost a few integer instructions each.

TensorFlow's stateless generators (Threefry, Philox) spend tens of instructions on a number, more
than the rest of a codec takes. To round a gradient, or to choose a sample, a hash of the element's
index and the step's seed is random enough. Every device computes the same numbers from the same
seed, with XLA and without.
"""

import math

import tensorflow as tf


def _mix(x: tf.Tensor) -> tf.Tensor:
    # `lowbias32`, the least biased 32-bit mixer with two multiplications found in
    # C. Wellons, "Prospecting for Hash Functions" (2018).
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
        x *= tf.constant(factor, tf.uint32)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(16, tf.uint32)))


def bits(seed: tf.Tensor, shape: tuple[int, ...] | tf.Tensor) -> tf.Tensor:
    """Random uint32 numbers of the given shape. Equal seeds give equal numbers.

    Args:
      seed: int32 [2].
      shape: A tuple of ints, or an int32 vector if the shape is known only in the graph.
    """
    static = isinstance(shape, tuple)
    count = math.prod(shape) if static else tf.reduce_prod(shape)
    first, second = tf.unstack(tf.bitcast(seed, tf.uint32))
    # The seed passes through the mixer before the index comes in. Otherwise neighbouring seeds
    # would give shifted copies of one sequence.
    start = _mix(first ^ _mix(second + tf.constant(0x9E3779B9, tf.uint32)))
    index = tf.cast(tf.range(count), tf.uint32)
    return tf.reshape(_mix(index ^ start), shape)


def uniform(seed: tf.Tensor, shape: tuple[int, ...] | tf.Tensor) -> tf.Tensor:
    """Random float32 numbers in [0, 1), which are multiples of 2**-24; see `bits`."""
    top = tf.bitwise.right_shift(bits(seed, shape), tf.constant(8, tf.uint32))
    return tf.cast(tf.cast(top, tf.int32), tf.float32) * 2.0**-24
